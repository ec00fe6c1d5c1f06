"""Fits the step model to points, by least squares of relative errors with no coefficient below 0.

There are few terms, so that all subsets can be tried: the best one whose plain least squares are
not negative is the exact solution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.points import FEATURES, Point

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """The terms by name, and by how much each point's time differs from the model's."""

    terms: dict[str, float]
    errors: tuple[float, ...]  # (model - measured) / measured, in the points' order

    @property
    def mean_error(self) -> float:
        return float(np.mean(np.abs(self.errors)))

    @property
    def max_error(self) -> float:
        return float(np.max(np.abs(self.errors)))


def fit(points: Sequence[Point]) -> Fit:
    """Return the model of the least relative error, without the terms that no point tells of."""
    if not points:
        raise InvalidSetting("points", "none", "must hold at least one: measure something first")
    times = np.array([point.ms for point in points])
    weighted = np.array([point.features for point in points]) / times[:, None]
    told = np.flatnonzero(weighted.any(axis=0))
    terms = _least_squares(weighted[:, told], np.ones(len(points)))
    errors = tuple((weighted[:, told] @ terms - 1.0).tolist())
    return Fit(
        {FEATURES[place]: float(term) for place, term in zip(told, terms, strict=True)}, errors
    )


def predict_ms(terms: dict[str, float], point: Point) -> float:
    named = zip(FEATURES, point.features, strict=True)
    return sum(terms.get(name, 0.0) * times for name, times in named)


def _least_squares(rows: Floats, wanted: Floats) -> Floats:
    """Return the x >= 0 for which rows @ x is nearest to what is wanted."""
    scale = rows.max(axis=0)
    scaled = rows / scale  # pairs are millions where steps are one
    best, least = np.zeros(len(scale)), float(wanted @ wanted)
    for chosen in _subsets(len(scale)):
        part = np.linalg.lstsq(scaled[:, chosen], wanted, rcond=None)[0]
        if part.min() < 0:
            continue
        left = scaled[:, chosen] @ part - wanted
        if float(left @ left) < least - 1e-12:
            least = float(left @ left)
            best = np.zeros(len(scale))
            best[chosen] = part
    return np.asarray(best / scale)


def _subsets(count: int) -> Iterator[list[int]]:
    """Yield all, the small ones first: of equally good ones the simplest wins."""
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            yield list(chosen)
