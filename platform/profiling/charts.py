"""Charts: first tokens by prompt, steps by batch and context, and the Pareto front."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.document import Document
from stafette.platform.profiling.fitting import predict_ms
from stafette.platform.profiling.points import Point

Curve = Sequence[tuple[float, float]]


def draw_profile(document: Document, folder: Path, stem: str) -> list[Path]:
    """Write STEM-ttft.png and STEM-itl.png; return those for which there are points."""
    terms, drawn = document.fit.terms, []
    kinds: tuple[tuple[str, str, Callable[[Point], tuple[str, float]], str], ...] = (
        ("prefill", "ttft", _by_share, "prompt, tokens"),
        ("decode", "itl", _by_context, "sequences in the batch"),
    )
    for kind, name, place, label in kinds:
        points = [point for point in document.points if point.kind == kind]
        if not points:
            continue
        with axes_of(folder / f"{stem}-{name}.png") as axes:
            for series, own in _grouped(points, place).items():
                xs = [x for x, _ in own]
                dots = axes.plot(xs, [point.ms for _, point in own], "o", label=series)
                fitted = [predict_ms(terms, point) for _, point in own]
                axes.plot(xs, fitted, "-", color=dots[0].get_color(), linewidth=1)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.set(title=_title(document, name), xlabel=label, ylabel="ms", ylim=(0, None))
            axes.legend(fontsize=8)
        drawn.append(folder / f"{stem}-{name}.png")
    return drawn


def draw_pareto(path: Path, title: str, fronts: Mapping[str, Curve], chosen: Curve) -> None:
    """Draw tokens/s of a GPU against tokens/s that each user sees."""
    with axes_of(path) as axes:
        for name, curve in fronts.items():
            axes.plot([x for x, _ in curve], [y for _, y in curve], "o-", markersize=3, label=name)
        axes.plot([x for x, _ in chosen], [y for _, y in chosen], "k*", markersize=12)
        axes.set(title=title, xlabel="tokens/s of a user", ylabel="output tokens/s of a GPU")
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.legend(fontsize=8)


def _by_share(point: Point) -> tuple[str, float]:
    prompt = point.prompt_tokens + point.cached_tokens
    return f"{round(10 * point.cached_tokens / prompt) * 10} % cached", prompt


def _by_context(point: Point) -> tuple[str, float]:
    return f"contexts of {point.context_tokens:,}", point.batch


def _grouped(
    points: Sequence[Point], place: Callable[[Point], tuple[str, float]]
) -> dict[str, list[tuple[float, Point]]]:
    grouped: dict[str, list[tuple[float, Point]]] = {}
    for point in points:
        series, x = place(point)
        grouped.setdefault(series, []).append((x, point))
    return {series: sorted(own, key=lambda each: each[0]) for series, own in grouped.items()}


def _title(document: Document, name: str) -> str:
    what = {"ttft": "Time to the first token", "itl": "Time of a decoding step"}[name]
    return f"{what}: {document.subject.get('model', '')} (dots: points, lines: the model)"


@contextmanager
def axes_of(path: Path) -> Iterator[Any]:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise InvalidSetting("--charts", str(path), "needs matplotlib: pip install it") from None
    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    try:
        yield axes
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise InvalidSetting("--charts", str(path), f"cannot be written: {error}") from None
    finally:
        pyplot.close(figure)
