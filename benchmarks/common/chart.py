"""Bar charts of a benchmark's table, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def bars(
    path: str | Path,
    title: str,
    unit: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
) -> None:
    """Draw one bar for each series in each group; what was not measured leaves a gap."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(2 + 1.8 * len(groups), 4.5), layout="constrained")
    width = 0.8 / max(1, len(series))
    for number, (name, values) in enumerate(series.items()):
        places = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        heights = [value or 0.0 for value in values]
        drawn = axes.bar(places, heights, width, label=name)
        axes.bar_label(drawn, [f"{value:,.0f}" if value else "" for value in values], fontsize=7)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(title=title, ylabel=unit)
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
