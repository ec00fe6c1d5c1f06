"""Line charts as inline SVG: no script, no file beside the page."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float | None]]  # None: a gap

WIDTH, HEIGHT = 720, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 26, 24
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")
_LINES = 4  # across
_LEAST = 1e-9  # a chart of less looks like one of nothing


def _time(at_s: float) -> str:
    return f"{at_s / 3_600:.3g} h" if at_s >= 7_200 else f"{at_s:.4g} s"


@dataclass(frozen=True, slots=True)
class Axis:
    """What a chart goes over."""

    mark: Callable[[float], str]
    dots: bool = False  # on each point: there may be few


SECONDS = Axis(_time)


def line_chart(
    title: str,
    series: Mapping[str, Points],
    most: float | None = None,
    steps: bool = False,
    axis: Axis = SECONDS,
) -> str:
    """Return a chart; `steps`: each value holds until the next."""
    values = [v for points in series.values() for _, v in points if v is not None]
    top = most if most is not None else _round_up(max(values, default=1.0))
    end = max((at for points in series.values() for at, _ in points), default=1.0) or 1.0
    parts = [_frame(title, top, end, axis)]
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = _path(points, top, end, steps)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += _dots(points, top, end, colour) if axis.dots else []
        x = WIDTH - _RIGHT - 110 * (len(series) - number)
        parts.append(f'<text x="{x}" y="16" fill="{colour}">{escape(name)}</text>')
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'


def _frame(title: str, top: float, end: float, axis: Axis) -> str:
    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(title)}</text>']
    for number in range(_LINES + 1):
        value = top * number / _LINES
        y = _y(value, top)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        at = end * number / _LINES
        x = _x(at, end)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{axis.mark(at)}</text>'
        )
    return "".join(parts)


def _path(points: Points, top: float, end: float, steps: bool) -> str:
    found, pen = [], "M"
    for at, value in points:
        if value is None:
            pen = "M"
            continue
        x, y = _x(at, end), _y(min(value, top), top)
        if steps and pen == "L":
            found.append(f"H{x:.1f}V{y:.1f}")
        else:
            found.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(found)


def _dots(points: Points, top: float, end: float, colour: str) -> list[str]:
    return [
        f'<circle cx="{_x(at, end):.1f}" cy="{_y(value, top):.1f}" r="2.5" fill="{colour}"/>'
        for at, value in points
        if value is not None
    ]


def _x(at: float, end: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * at / end


def _y(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 5 or 10 times a power of ten, or 4 where all is nothing."""
    if value <= 0:
        return 4.0
    power = 10.0 ** math.floor(math.log10(max(value, _LEAST)))
    return next(power * step for step in (1, 2, 4, 5, 10, 20) if power * step >= value)
