"""Twins of small fleets, and what they answered."""

import pytest

from stafette.platform.config_reading import Part
from stafette.platform.planner.config import PoolLimits
from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.config import TwinConfig, TwinPool
from stafette.platform.twin.prompts import Piece, prompt_of
from stafette.platform.twin.twin import Twin
from stafette.platform.twin.workloads.config import PoissonConfig, WorkloadConfig
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.speed_profile import Profile

# Times whose sums can be done in the head: 10 ms a step, 1 ms for 10 tokens of a prompt.
PLAIN = Profile(
    step_ms=10.0,
    prefill_ms_per_token=0.1,
    prefill_ms_per_pair=0.0,
    decode_ms_per_seq=0.0,
    decode_ms_per_kv_token=0.0,
)
ENGINE = Part(EngineConfig, frozenset(), {"num_kv_blocks": 2_048, "async_scheduling": False})


class Given:
    """A workload of requests that are told one by one: (second, prompt tokens, output tokens)."""

    def __init__(self, *asked, duration_s=0.0, prompts=None):
        self.asked = asked
        self.duration_s = duration_s
        self.prompts = prompts or {}  # pieces, by number

    def arrivals(self):
        for number, (at_s, prompt, output) in enumerate(self.asked):
            pieces = self.prompts.get(number, [Piece(1_000 + number, prompt)])
            yield Arrival(
                at_s=at_s, make_prompt=lambda p=pieces: prompt_of(p), output_tokens=output
            )


class Stage:
    """Makes twins; keeps the last one and its answers."""

    given = Given

    def __init__(self) -> None:
        self.twin = None
        self.answers = {}  # tokens, by request

    def config(self, start_s=5.0, **options):
        """Return a config; pools are given by their replicas."""
        pools = options.pop("pools", {"workers": 1})
        limits = PoolLimits(startup_s=start_s)
        made = {
            name: TwinPool(replicas=count, speed=PLAIN, limits=limits)
            for name, count in pools.items()
        }
        workload = WorkloadConfig(poisson=PoissonConfig())
        defaults = {"workload": workload, "engine": ENGINE, "beat_s": 0.5}
        return TwinConfig(pools=made, **(defaults | options))

    def run(self, workload, config=None, on_tick=None, **options):
        config = config or self.config(**options)
        self.twin = Twin(config, workload, on_tick)
        self.answers = answers = {}
        done = self.twin.tally.done

        def note(course, now) -> None:
            answers[course.name] = list(course.tokens)
            done(course, now)

        self.twin.tally.done = note
        results = self.twin.run()
        self._check_nothing_leaks()
        return results

    def _check_nothing_leaks(self) -> None:
        for replica in self.twin.fleet.replicas.values():
            if replica.worker is not None:
                assert not replica.worker.scheduler.has_work
        assert not self.twin.dispatch.legs
        for member in self.twin.router.fleet.members.values():
            assert not member.load.request_ids


@pytest.fixture
def stage():
    return Stage()
