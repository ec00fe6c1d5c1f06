"""What a report shows of its levels: one description for charts as files and on the page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stafette.platform.bench.measured import Measured, by_label
from stafette.platform.bench.tables import part
from stafette.platform.profiling.pareto import front

Curve = Sequence[tuple[float, float]]
Value = Callable[[Measured], float | None]


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines of one chart, by label."""

    stem: str
    title: str
    over: str
    lines: Mapping[str, Curve]


_OUTPUT = "output tokens/s"
_KINDS: Sequence[tuple[str, str, str, Value, Value]] = (
    (
        "ttft",
        "Time to first token p50, ms",
        _OUTPUT,
        lambda m: m.summary.output_tokens_s,
        lambda m: part(m.summary.ttft_ms, "p50"),
    ),
    (
        "ttft-p99",
        "Time to first token p99, ms",
        _OUTPUT,
        lambda m: m.summary.output_tokens_s,
        lambda m: part(m.summary.ttft_ms, "p99"),
    ),
    (
        "tpot",
        "Time per output token p50, ms",
        _OUTPUT,
        lambda m: m.summary.output_tokens_s,
        lambda m: part(m.summary.tpot_ms, "p50"),
    ),
    (
        "e2e",
        "Whole answer p50, ms",
        "requests/s",
        lambda m: m.summary.requests_s,
        lambda m: part(m.summary.e2e_ms, "p50"),
    ),
    ("throughput", "Output tokens/s", "", lambda m: m.load, lambda m: m.summary.output_tokens_s),
    ("goodput", "Requests/s that keep the SLO", "", lambda m: m.load, lambda m: m.summary.good_s),
    (
        "hits",
        "Prompt tokens found in the KV cache, %",
        "",
        lambda m: m.load,
        lambda m: None if m.summary.kv_hit_rate is None else 100 * m.summary.kv_hit_rate,
    ),
)


def curves_of(measured: Sequence[Measured]) -> list[Curves]:
    """Return the charts for which there is something to draw."""
    labels, found = by_label(measured), []
    for stem, title, over, x, y in _KINDS:
        lines = {label: _curve(own, x, y) for label, own in labels.items()}
        lines = {label: curve for label, curve in lines.items() if curve}
        if lines:
            found.append(Curves(stem, title, over or measured[0].axis, lines))
    pareto = {label: front(_efficiency(own)) for label, own in labels.items()}
    pareto = {label: curve for label, curve in pareto.items() if curve}
    if pareto:
        title, over = "Output tokens/s of a GPU (Pareto front)", "tokens/s that a user sees"
        found.append(Curves("pareto", title, over, pareto))
    return found


def _curve(own: Sequence[Measured], x: Value, y: Value) -> Curve:
    """Return points in the order of the load: a line that turns back shows an overload."""
    pairs = [(x(each), y(each)) for each in own]
    return [(at, value) for at, value in pairs if at is not None and value is not None]


def _efficiency(own: Sequence[Measured]) -> list[tuple[float, float]]:
    return [
        (each.summary.user_tokens_s, each.summary.gpu_tokens_s)
        for each in own
        if each.summary.user_tokens_s is not None
    ]
