"""What the twin is told of the workers that are compared with it, and what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.profiling.truth_calibration import Slowness
from benchmarks.profiling.truth_traffic import Asked, Found, Mix, Replayed
from stafette.platform.twin.config import TwinConfig, read
from stafette.platform.twin.twin import Twin
from stafette.workers.mocker.speed_profile import Profile

_TOLD = ("max_model_len", "num_kv_blocks", "max_num_seqs", "max_num_batched_tokens")
_UNSLOWED = Slowness(prefill=1.0, decode=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One prefill worker and one decode worker, and what is asked of them."""

    flags: Mapping[str, Any]  # of both engines
    mix: Mix
    speed: Profile

    @property
    def capacity(self) -> float:
        """Return how many requests a second the busier of the two workers can take."""
        speed = self.speed
        prompt, output = sum(self.mix.prompts) / 2, sum(self.mix.outputs) / 2
        prefill_ms = (
            speed.step_ms
            + prompt * speed.prefill_ms_per_token
            + prompt * prompt / 2 * speed.prefill_ms_per_pair
        )
        context = prompt + output / 2
        decode_ms = output * (speed.decode_ms_per_seq + context * speed.decode_ms_per_kv_token)
        # Half of the time may go to what every step costs, however many sequences share it.
        return 1e3 / max(prefill_ms, 2 * decode_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """All that the twin is told."""

    setup: Setup
    folder: Path
    slowness: Slowness = _UNSLOWED
    frontend_s: float = 0.0

    def foretell(self, asked: list[Asked]) -> Found:
        speed = self.setup.speed
        first, busy = self._run(asked, (speed, speed))
        if self.slowness == _UNSLOWED:
            return first
        return self._run(asked, self.slowness.speeds(speed, *busy))[0]

    def config(self, speeds: Sequence[Profile]) -> TwinConfig:
        pools = {}
        for name, speed in zip(("prefill", "decode"), speeds, strict=True):
            (self.folder / f"{name}.json").write_text(speed.to_json())
            pools[name] = {"replicas": 1, "profile": f"{name}.json", "worker_class": "real"}
        told = {
            "workload": {"poisson": {}},  # stands for the requests that are handed in
            "frontend_s": self.frontend_s,
            "engine": {k: v for k, v in self.setup.flags.items() if k in _TOLD},
            "pools": pools,
        }
        (self.folder / "twin.yaml").write_text(yaml.safe_dump(told))
        return read(self.folder / "twin.yaml")

    def _run(
        self, asked: list[Asked], speeds: Sequence[Profile]
    ) -> tuple[Found, tuple[float, float]]:
        """Return what the twin says, and which share of the time each worker is busy."""
        twin = Twin(self.config(speeds), Replayed(asked))
        results = twin.run()
        assert len(results.served) == len(asked), results.failures
        took = max(each.done_s for each in results.served) - asked[0].at_s
        found = Found(
            tokens_s=sum(each.output_tokens for each in results.served) / took,
            ttft_ms=[each.ttft_s * 1e3 for each in results.served],
            itl_ms=[each.itl_s * 1e3 for each in results.served if each.itl_s is not None],
            handed_over=results.counters["handed_over"],
        )
        return found, (_busy(twin, "prefill", took), _busy(twin, "decode", took))


def _busy(twin: Twin, pool: str, took_s: float) -> float:
    workers = [each.worker for each in twin.fleet.replicas.values() if each.pool == pool]
    seconds = sum(worker.stats().busy_seconds for worker in workers if worker is not None)
    return min(1.0, seconds / took_s)
