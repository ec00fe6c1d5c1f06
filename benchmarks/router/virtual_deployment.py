"""The same deployment on a virtual clock: router, scheduling, caches, hand-over; no sockets.

What a frontend and its streams would add is left out, but for the time that news take.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.router.completions import Answer
from benchmarks.router.mock_workers import BLOCK_SIZE, CLASS, MAX_MODEL_LEN
from benchmarks.router.prefix_load import Asked
from stafette.platform.config_reading import Part
from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.config import TwinConfig, TwinPool
from stafette.platform.twin.prompts import Prompt
from stafette.platform.twin.twin import Twin
from stafette.platform.twin.workloads.config import PoissonConfig, WorkloadConfig
from stafette.router.registry import PolicyConfig
from stafette.router.router import RouterConfig
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.speed_profile import Profile


@dataclass(frozen=True, slots=True)
class _Load:
    """What is asked, from a moment on."""

    asked: Asked
    began: float

    @property
    def duration_s(self) -> float:
        return self.began

    def arrivals(self) -> Iterator[Arrival]:
        asked = self.asked
        for prompt, length, when in zip(asked.prompts, asked.lengths, asked.times, strict=True):
            make = partial(Prompt, np.array(prompt, np.uint32), prompt)
            yield Arrival(at_s=self.began + when, make_prompt=make, output_tokens=length)


class VirtualDeployment:
    """Answers like MockDeployment; the time that it takes is the virtual clock's."""

    def __init__(
        self, roles: Mapping[str, Any], policy: Any, profile: Profile, num_blocks: int
    ) -> None:
        flags = {
            "block_size": BLOCK_SIZE,
            "num_kv_blocks": num_blocks,
            "max_model_len": min(MAX_MODEL_LEN, num_blocks * BLOCK_SIZE),
        }
        pools = {
            role: TwinPool(role=role, replicas=count, speed=profile, worker_class=CLASS)
            for role, count in Counter(roles.values()).items()
        }
        config = TwinConfig(
            workload=WorkloadConfig(poisson=PoissonConfig()),  # in whose place comes what is asked
            pools=pools,
            engine=Part(EngineConfig, frozenset(), flags),
            router=RouterConfig(policy=PolicyConfig(name=policy)),
        )
        self._twin = Twin(config, _Load(Asked([], [], []), 0.0))
        self._twin.begin()

    def serve(self, asked: Asked) -> tuple[list[Answer], float]:
        began, before = self._twin.time.now, len(self._twin.tally.served)
        self._twin.serve(_Load(asked, began))
        answers = [
            Answer(each.ttft_s, each.done_s - each.at_s, each.cached_tokens, each.done_s)
            for each in self._twin.tally.served[before:]
        ]
        return answers, max(answer.ended_at for answer in answers) - began

    def computed_tokens(self) -> int:
        workers = [each.worker for each in self._twin.fleet.replicas.values() if each.worker]
        stats = [worker.stats().scheduler for worker in workers]
        return sum(each.prefix_queries - each.prefix_hits for each in stats)
