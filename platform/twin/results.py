"""What came of a simulation, as figures: for a person, a program, a comparison."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stafette.platform.planner.config import SloConfig
from stafette.platform.twin.tally import Served, percentile
from stafette.platform.twin.tiers import TierUse
from stafette.platform.twin.timeline import Moment

if TYPE_CHECKING:
    from stafette.platform.twin.twin import Twin

VERSION = 1
_PERCENTS = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    slo: SloConfig
    duration_s: float  # of the run, to its last token
    arrivals: int
    served: Sequence[Served]
    failures: Mapping[str, int]  # by reason
    attainment: float  # share of requests whose two promises were kept
    kept_by_bin: Sequence[tuple[float, float | None]]  # by when they came
    gpu_hours: Mapping[str, float]  # by pool
    cost: float
    changes: Mapping[str, int]  # of the wanted replicas, by pool
    token_gap_ms: Mapping[str, float]  # over all gaps between tokens
    hit_share: float  # of prompt tokens
    tiers: Mapping[str, TierUse]  # by tier, the device first; empty without tiers
    counters: Mapping[str, int]
    timeline: Sequence[Moment]

    @classmethod
    def of(cls, twin: "Twin") -> "Results":
        tally, fleet, now = twin.tally, twin.fleet, twin.time.now
        dispatch, mover = twin.dispatch.counters, twin.dispatch.mover
        prompts = sum(each.prompt_tokens for each in tally.served)
        cached = sum(each.cached_tokens for each in tally.served)
        return cls(
            slo=tally.slo,
            duration_s=now,
            arrivals=tally.arrivals,
            served=tally.served,
            failures=dict(tally.failures),
            attainment=tally.attainment,
            kept_by_bin=_kept_by_bin(tally.served, tally.failed_at, twin.timeline.bin_s),
            gpu_hours={n: s / 3_600 for n, s in fleet.gpu_seconds(now).items()},
            cost=fleet.cost(now),
            changes={name: pool.changes for name, pool in fleet.pools.items()},
            token_gap_ms=tally.gaps.to_dict(),
            hit_share=cached / prompts if prompts else 0.0,
            tiers=fleet.tiers.uses(),
            counters={
                "handed_over": dispatch.handed_over,
                "pulled": dispatch.pulled,
                "moved": mover.num_moved,
                "moves_failed": mover.num_failed,
                "lost": dispatch.lost,
            },
            timeline=twin.timeline.moments,
        )

    @property
    def ttft_ms(self) -> dict[str, float]:
        return _spread([each.ttft_s * 1e3 for each in self.served])

    @property
    def itl_ms(self) -> dict[str, float]:
        """Of each request's mean."""
        return _spread([each.itl_s * 1e3 for each in self.served if each.itl_s is not None])

    @property
    def all_gpu_hours(self) -> float:
        return sum(self.gpu_hours.values())

    @property
    def promise_kept(self) -> bool:
        """Whether both percentiles are within their limits, and nothing failed."""
        ttfts = [each.ttft_s * 1e3 for each in self.served]
        itls = [each.itl_s * 1e3 for each in self.served if each.itl_s is not None]
        return (
            percentile(ttfts, self.slo.ttft_percentile) <= self.slo.ttft_ms
            and percentile(itls, self.slo.itl_percentile) <= self.slo.itl_ms
            and not self.failures
        )

    def violated_s(self, share: float = 0.99) -> float:
        """Return how long fewer than that share of those who came had their promises kept."""
        times = [at_s for at_s, _ in self.kept_by_bin]
        bin_s = times[1] - times[0] if len(times) > 1 else self.duration_s
        return bin_s * sum(kept is not None and kept < share for _, kept in self.kept_by_bin)

    def to_dict(self) -> dict[str, Any]:
        output = sum(each.output_tokens for each in self.served)
        return {
            "version": VERSION,
            "slo": asdict(self.slo),
            "duration_s": self.duration_s,
            "requests": self.arrivals,
            "served": len(self.served),
            "failures": dict(self.failures),
            "slo_attainment": self.attainment,
            "promise_kept": self.promise_kept,
            "ttft_ms": self.ttft_ms,
            "itl_ms": self.itl_ms,
            "token_gap_ms": dict(self.token_gap_ms),
            "requests_s": len(self.served) / self.duration_s if self.duration_s else 0.0,
            "output_tokens_s": output / self.duration_s if self.duration_s else 0.0,
            "prompt_tokens": sum(each.prompt_tokens for each in self.served),
            "output_tokens": output,
            "hit_share": self.hit_share,
            "tiers": {name: asdict(use) for name, use in self.tiers.items()},
            "gpu_hours": {**self.gpu_hours, "all": self.all_gpu_hours},
            "cost": self.cost,
            "changes": dict(self.changes),
            "counters": dict(self.counters),
            "kept_by_bin": [list(each) for each in self.kept_by_bin],
            "timeline": [asdict(moment) for moment in self.timeline],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


def _spread(values: Sequence[float]) -> dict[str, float]:
    mean = sum(values) / len(values) if values else 0.0
    ordered = sorted(values)
    return {"mean": mean} | {f"p{p}": percentile(ordered, p) for p in _PERCENTS}


def _kept_by_bin(
    served: Sequence[Served], failed_at: Sequence[float], bin_s: float
) -> list[tuple[float, float | None]]:
    """Return for each bin the share of those that came in it whose promises were kept."""
    ended = [(each.at_s, each.kept) for each in served] + [(at_s, False) for at_s in failed_at]
    counts: dict[int, list[int]] = {}
    for at_s, kept in ended:
        count = counts.setdefault(int(at_s / bin_s), [0, 0])
        count[0] += kept
        count[1] += 1
    last = max(counts, default=-1)
    return [
        (number * bin_s, counts[number][0] / counts[number][1] if number in counts else None)
        for number in range(last + 1)
    ]
