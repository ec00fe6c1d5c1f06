"""The charts of a report as PNG files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from stafette.platform.bench.curves import curves_of
from stafette.platform.bench.measured import Measured
from stafette.platform.bench.results import not_written
from stafette.platform.profiling.charts import axes_of


def draw_all(folder: Path, measured: Sequence[Measured]) -> list[Path]:
    """Write a file for each chart; InvalidSetting where matplotlib is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(folder, error) from None
    drawn = []
    for curves in curves_of(measured):
        path = folder / f"{curves.stem}.png"
        with axes_of(path) as axes:
            points = [point for line in curves.lines.values() for point in line]
            for label, line in curves.lines.items():
                axes.plot([x for x, _ in line], [y for _, y in line], "o-", label=label)
            axes.set(title=curves.title, xlabel=curves.over, ylabel=curves.title)
            axes.set(xlim=(0, _room(x for x, _ in points)), ylim=(0, _room(y for _, y in points)))
            axes.legend(fontsize=8)
        drawn.append(path)
    return drawn


def _room(values: Iterable[float]) -> float:
    """Return where an axis ends."""
    return 1.05 * max(values) or 1.0
