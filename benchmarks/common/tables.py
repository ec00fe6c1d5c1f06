"""Plain-text tables that read well in a terminal and as Markdown."""

from collections.abc import Sequence


def cell(value: object) -> str:
    """Return a value as a table shows it: numbers to three digits, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float) -> str:
    if value != value:
        return "nan"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.3g}"


def render(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, its columns aligned: words to the left, numbers to the right."""
    shown = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *shown, strict=True)]
    numeric = [_all_numbers(column) for column in zip(*rows, strict=True)] or [False] * len(headers)
    lines = [_line(headers, widths, numeric), _rule(widths, numeric)]
    return "\n".join(lines + [_line(row, widths, numeric) for row in shown])


def _all_numbers(column: Sequence[object]) -> bool:
    return all(isinstance(value, int | float | None) for value in column)


def _line(values: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = [
        value.rjust(width) if right else value.ljust(width)
        for value, width, right in zip(values, widths, numeric, strict=True)
    ]
    return f"| {' | '.join(parts)} |"


def _rule(widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = [
        "-" * (width + 1) + (":" if right else "-")
        for width, right in zip(widths, numeric, strict=True)
    ]
    return f"|{'|'.join(parts)}|"
