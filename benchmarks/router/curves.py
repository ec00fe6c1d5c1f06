"""Line charts of a sweep, side by side in one PNG file, and its rows as CSV."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Curve = Sequence[tuple[float, float | None]]  # what was not measured leaves a gap


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    x: str
    y: str
    curves: Mapping[str, Curve]
    log_x: bool = False
    log_y: bool = False


def draw(path: str | Path, title: str, panels: Sequence[Panel], columns: int) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    rows = -(-len(panels) // columns)
    size = (4.6 * columns, 3.4 * rows + 0.4)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(title)
    for panel, axes in zip(panels, grid.flat, strict=False):
        for name, curve in panel.curves.items():
            known = [(x, y) for x, y in curve if y is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], marker="o", label=name)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.set_xscale("log" if panel.log_x else "linear")
        axes.set_yscale("log" if panel.log_y else "linear")
        if not panel.log_y:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_csv(path: str | Path, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(headers)
        writer.writerows(rows)
