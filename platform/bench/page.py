"""A report as one page that needs nothing beside it: tables and charts, no script."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from stafette.platform.bench.comparing import Difference
from stafette.platform.bench.curves import curves_of
from stafette.platform.bench.measured import Broken, Measured
from stafette.platform.bench.results import not_written
from stafette.platform.bench.tables import (
    best_of,
    broken_of,
    difference_table,
    errors_of,
    summary_table,
)
from stafette.platform.twin.charts import Axis, line_chart
from stafette.platform.twin.html_report import page_of

_PLAIN = Axis(lambda value: f"{value:g}", dots=True)


def write_page(folder: Path, measured: Sequence[Measured], broken: Sequence[Broken]) -> Path:
    """Write report.html into the folder of the results."""
    path = folder / "report.html"
    notes = [*best_of(measured), *errors_of(measured), *broken_of(broken)]
    body = f"{_table(summary_table(measured))}{_list(notes)}{_charts(measured)}"
    _write(path, page_of(f"Benchmark: {folder.name}", body + _about(measured)))
    return path


def write_comparison(
    path: Path, sides: Mapping[str, Sequence[Measured]], found: Sequence[Difference]
) -> None:
    both = [
        replace(each, label=f"{side}: {each.label}") for side, own in sides.items() for each in own
    ]
    body = f"{_table(difference_table(found))}{_charts(both)}{_table(summary_table(both))}"
    _write(path, page_of("A and B", body))


def _charts(measured: Sequence[Measured]) -> str:
    return "".join(
        line_chart(f"{curves.title}, over {curves.over}", curves.lines, axis=_PLAIN)
        for curves in curves_of(measured)
    )


def _about(measured: Sequence[Measured]) -> str:
    clients = ", ".join(sorted({each.backend for each in measured}))
    return _list([f"measured by: {clients}", "times in ms; KV hits in % of the prompts' tokens"])


def _table(text: str) -> str:
    return f'<div style="overflow-x:auto"><pre>{escape(text)}</pre></div>'


def _list(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from None
