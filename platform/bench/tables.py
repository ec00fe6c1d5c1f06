"""Results as text: a line for each level, and labels side by side."""

from collections.abc import Callable, Mapping, Sequence

from stafette.platform.bench.comparing import Difference
from stafette.platform.bench.measured import Broken, Measured, by_label
from stafette.platform.bench.summary import Spread, Summary

Row = Sequence[str]
Value = Callable[[Summary], float | None]

COLUMNS: Mapping[str, Value] = {
    "requests": lambda s: s.requests,
    "failed": lambda s: s.failed,
    "requests/s": lambda s: s.requests_s,
    "in tok/s": lambda s: s.input_tokens_s,
    "out tok/s": lambda s: s.output_tokens_s,
    "all tok/s": lambda s: s.tokens_s,
    "TTFT p50": lambda s: part(s.ttft_ms, "p50"),
    "p99": lambda s: part(s.ttft_ms, "p99"),
    "TPOT p50": lambda s: part(s.tpot_ms, "p50"),
    "p99 ": lambda s: part(s.tpot_ms, "p99"),
    "ITL p99": lambda s: part(s.itl_ms, "p99"),
    "E2E p50": lambda s: part(s.e2e_ms, "p50"),
    "p99  ": lambda s: part(s.e2e_ms, "p99"),
    "good/s": lambda s: s.good_s,
    "KV hits, %": lambda s: None if s.kv_hit_rate is None else 100 * s.kv_hit_rate,
    "batch": lambda s: part(s.server.get("batch_size"), "mean"),
    "memory, MiB": lambda s: _mebibytes(s.server.get("memory_bytes")),
    "$/M out": lambda s: s.dollars_output,
}
_MIB = 1 << 20


def summary_table(measured: Sequence[Measured]) -> str:
    """Return all levels; a column of which nothing is known is left out. Times are in ms."""
    shown = {
        name: value
        for name, value in COLUMNS.items()
        if any(value(each.summary) is not None for each in measured)
    }
    head = ["label", "level", *shown]
    rows = [
        [each.label, each.level, *(number(value(each.summary)) for value in shown.values())]
        for each in measured
    ]
    return aligned(head, rows)


def errors_of(measured: Sequence[Measured]) -> list[str]:
    return [
        f"{each.label} {each.level}: {count} x {kind}"
        for each in measured
        for kind, count in each.summary.errors.items()
    ]


def broken_of(broken: Sequence[Broken]) -> list[str]:
    return [f"{each.label} {each.level} is not finished: {each.why}" for each in broken]


def best_of(measured: Sequence[Measured]) -> list[str]:
    """Return each label's best level by output tokens, where there are several labels."""
    labels = by_label(measured)
    best = {
        label: max(own, key=lambda each: each.summary.output_tokens_s)
        for label, own in labels.items()
    }
    if len(best) < 2:
        return []
    most = max(each.summary.output_tokens_s for each in best.values()) or 1.0
    return [
        f"{label}: at most {number(each.summary.output_tokens_s)} output tokens/s, at {each.level}"
        f" ({each.summary.output_tokens_s / most:.0%} of the best)"
        for label, each in best.items()
    ]


def difference_table(found: Sequence[Difference]) -> str:
    head = ["level", "", "A", "B", "B / A", "95 % of", "", "verdict"]
    rows = [
        [
            each.level,
            each.name,
            number(each.a),
            number(each.b),
            f"{each.ratio:.3f}",
            f"{each.low:.3f}",
            f"{each.high:.3f}",
            each.verdict,
        ]
        for each in found
    ]
    return aligned(head, rows)


def part(spread: Spread | None, name: str) -> float | None:
    return None if spread is None else spread[name]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def aligned(head: Row, rows: Sequence[Row]) -> str:
    """Return columns side by side: words to the left, numbers to the right."""
    table = [[cell.strip() for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    words = [any(row[i][:1].isalpha() for row in table[1:]) for i in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in table
    )


def _mebibytes(value: float | None) -> float | None:
    return None if value is None else value / _MIB
