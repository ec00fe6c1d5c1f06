"""The same deployment on a virtual clock: router, scheduling, caches, hand-over; no sockets.

What a frontend and its streams would add is left out, but for the time that news take.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.router.completions import Answer
from benchmarks.router.mock_workers import BLOCK_SIZE, CLASS, KEY, MODEL, flags
from benchmarks.router.prefix_load import Asked
from stafette.kvtransfer.connectors.p2p.messages import Give, Take
from stafette.kvtransfer.events import EventBatch
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.index import CacheSpec
from stafette.router.load import LoadReport
from stafette.router.performance import Performance
from stafette.router.registry import PolicyConfig
from stafette.router.request import Request as Asking
from stafette.router.request import WorkerSpec
from stafette.router.router import KvRouter, Placement, RouterConfig
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.core import Mocker
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.virtual import VirtualCluster, VirtualTime
from stafette.workers.request import OutputDelta, Request
from stafette.workers.sampling.params import SamplingParams

_NEWS_S = 0.002  # until the router hears of an event
_BEAT_S = 1.0  # between two reports of a worker's load
LEARNED = (
    "step_ms",
    "prefill_ms_per_token",
    "prefill_ms_per_pair",
    "decode_ms_per_seq",
    "decode_ms_per_kv_token",
)


def prior(profile: Profile) -> Performance:
    """Return what the router is to know of such workers' speed before they work."""
    return Performance(**{name: getattr(profile, name) for name in LEARNED})


@dataclass(slots=True)
class _UnderWay:
    began: float
    first: float = 0.0
    tokens: int = 0
    cached: int = 0


class VirtualDeployment:
    """Answers like MockDeployment; the time that it takes is the virtual clock's."""

    def __init__(
        self, roles: Mapping[str, Any], policy: Any, profile: Profile, num_blocks: int
    ) -> None:
        self.time = VirtualTime()
        self._cluster = VirtualCluster(self.time)
        hashers = Hashers(KEY, BLOCK_SIZE)
        config = RouterConfig(policy=PolicyConfig(name=policy), priors={CLASS: prior(profile)})
        self.router = KvRouter(hashers, config, self.time)
        self._hasher = PromptHasher(hashers)
        self._under_way: dict[str, _UnderWay] = {}
        self._answers: list[Answer] = []
        self._numbers = itertools.count()
        for name, role in roles.items():
            engine = flags(num_blocks)
            worker = MockerConfig(
                name=name, role=role, engine=engine, profile=profile, worker_class=CLASS
            )
            self._add(worker, hashers.of(MODEL).fingerprint)

    def serve(self, asked: Asked) -> tuple[list[Answer], float]:
        self._answers, began = [], self.time.now
        for prompt, length, when in zip(asked.prompts, asked.lengths, asked.times, strict=True):
            self.time.at(began + when, partial(self._ask, prompt, length))
        self._beat(len(asked.prompts))
        self.time.run()
        took_s = max(answer.ended_at for answer in self._answers) - began
        return self._answers, took_s

    def computed_tokens(self) -> int:
        stats = [worker.stats().scheduler for worker in self._cluster.workers.values()]
        return sum(each.prefix_queries - each.prefix_hits for each in stats)

    def _add(self, config: MockerConfig, fingerprint: bytes) -> None:
        worker = self._cluster.add(config, self._heard)
        worker.on_kv_events = self._on_events
        cache = CacheSpec(
            target=config.name, block_size=BLOCK_SIZE, model=MODEL, fingerprint=fingerprint
        )
        self.router.register(
            WorkerSpec(
                cache=cache,
                role=config.role,
                worker_class=CLASS,
                host="one",
                total_blocks=config.num_blocks,
                block_bytes=config.block_bytes,
            )
        )

    def _on_events(self, batch: EventBatch) -> None:
        self.time.at(self.time.now + _NEWS_S, partial(self.router.index.on_batch, batch))

    def _beat(self, wanted: int) -> None:
        for name, worker in self._cluster.workers.items():
            found = worker.stats().scheduler
            self.router.report_load(
                name,
                LoadReport(
                    self.time.now,
                    found.num_queued_tokens,
                    found.num_running,
                    found.num_blocks_used,
                ),
            )
        if len(self._answers) < wanted:
            self.time.at(self.time.now + _BEAT_S, partial(self._beat, wanted))

    def _ask(self, prompt: list[int], length: int) -> None:
        name = f"r{next(self._numbers)}"
        asking = Asking(
            request_id=name,
            chain=self._hasher.chain(prompt, MODEL),
            prompt_tokens=len(prompt),
            expected_output_tokens=length,
            model=MODEL,
        )
        placement = self.router.place(asking)
        self._under_way[name] = _UnderWay(self.time.now)
        params = SamplingParams(max_tokens=length, ignore_eos=True)
        self._send(placement, Request(request_id=name, prompt_token_ids=prompt, params=params))

    def _send(self, placement: Placement, request: Request) -> None:
        """Do what a dispatcher does: let blocks be pulled, the prompt computed, then answered."""
        name = request.request_id
        taken, computing = dict[str, object](), placement.prefill or placement.decode
        source = placement.source
        if source is not None:
            taken = Take(f"{name}-c", (source.target,), source.first + source.blocks).params()
            offered = replace(request, request_id=f"{name}-c")
            self._worker(source.target).offer(offered, Give(f"{name}-c", (computing,)).params())
        if placement.prefill is None:
            self._worker(placement.decode).generate(request, taken)
            return
        self._worker(placement.decode).generate(request, Take(name, (placement.prefill,)).params())
        first = replace(request.params, max_tokens=1)
        given: Any = Give(name, (placement.decode,)).params()["p2p"]
        both: Any = taken.get("p2p", {})
        self._worker(placement.prefill).prefill(
            replace(request, request_id=f"{name}-p", params=first),
            {"p2p": {**given, **both}},
            lambda exported: None,
        )

    def _worker(self, name: str) -> Mocker:
        return self._cluster.workers[name]

    def _heard(self, deltas: list[OutputDelta]) -> None:
        for delta in deltas:
            under_way = self._under_way.get(delta.request_id)
            if under_way is None:
                continue  # the token of a prompt that is handed over
            if not under_way.tokens:
                under_way.first = self.time.now - under_way.began
                under_way.cached = delta.num_cached_tokens
                self.router.first_token(delta.request_id, under_way.cached, under_way.first * 1e3)
            under_way.tokens += len(delta.token_ids)
            self.router.progress(delta.request_id, under_way.tokens)
            if delta.finish_reason is not None:
                self._end(delta.request_id, under_way)

    def _end(self, name: str, under_way: _UnderWay) -> None:
        now = self.time.now
        self.router.free(name, under_way.tokens)
        del self._under_way[name]
        total_s = now - under_way.began
        self._answers.append(Answer(under_way.first, total_s, under_way.cached, now))
