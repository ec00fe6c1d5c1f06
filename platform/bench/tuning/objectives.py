"""What is wanted: more of a score is better."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stafette.platform.bench.summary import Summary


@dataclass(frozen=True, slots=True)
class Objective:
    """`compared`: its name among the differences of two servers; None: it is none of them."""

    name: str
    unit: str
    value: Callable[[Summary], float | None]
    more_is_better: bool = True
    compared: str | None = None

    def score(self, summary: Summary) -> float | None:
        value = self.value(summary)
        if not value:
            return None if value is None else 0.0
        return value if self.more_is_better else 1 / value

    def shown(self, summary: Summary) -> str:
        value = self.value(summary)
        return "nothing" if value is None else f"{value:,.4g} {self.unit}"


OBJECTIVES: Mapping[str, Objective] = {
    each.name: each
    for each in (
        Objective(
            "throughput",
            "output tokens/s",
            lambda s: s.output_tokens_s,
            compared="output tokens/s",
        ),
        Objective(
            "latency",
            "ms for an answer",
            lambda s: s.e2e_ms["mean"] if s.e2e_ms else None,
            more_is_better=False,
            compared="E2E mean, ms",
        ),
        Objective(
            "first-token",
            "ms to the first token, p90",
            lambda s: s.ttft_ms["p90"] if s.ttft_ms else None,
            more_is_better=False,
            compared="TTFT p90, ms",
        ),
        Objective("goodput", "requests/s that keep the SLO", lambda s: s.good_s),
    )
}
