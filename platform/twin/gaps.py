"""Times between tokens, counted in classes of one percent: millions of them take no room."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_LEAST_S = 1e-5
_STEP = math.log(1.01)
_CLASSES = 2_000  # up to an hour and more


class Gaps:
    def __init__(self) -> None:
        self._many = np.zeros(_CLASSES, np.int64)
        self._single = [0] * _CLASSES  # counted one by one, for which an array is slow
        self._total_s = 0.0
        self._longest_s = 0.0

    @property
    def count(self) -> int:
        return int(self._counts().sum())

    @property
    def mean_s(self) -> float:
        return self._total_s / self.count if self.count else 0.0

    def add(self, gap_s: float) -> None:
        place = int(math.log(gap_s / _LEAST_S) / _STEP) if gap_s > _LEAST_S else 0
        self._single[min(place, _CLASSES - 1)] += 1
        self._total_s += gap_s
        self._longest_s = max(self._longest_s, gap_s)

    def add_all(self, gaps_s: npt.NDArray[np.float64], times: int) -> None:
        """Count each of them so many times."""
        places = (np.log(np.maximum(gaps_s, _LEAST_S) / _LEAST_S) / _STEP).astype(np.int64)
        np.add.at(self._many, np.minimum(places, _CLASSES - 1), times)
        self._total_s += float(gaps_s.sum()) * times
        self._longest_s = max(self._longest_s, float(gaps_s.max()))

    def percentile(self, percent: float) -> float:
        """Return it to within one percent."""
        if not self.count:
            return 0.0
        sums = np.cumsum(self._counts())
        place = int(np.searchsorted(sums, percent / 100 * sums[-1]))
        return min(self._longest_s, _LEAST_S * math.exp((place + 0.5) * _STEP))

    def _counts(self) -> npt.NDArray[np.int64]:
        return np.add(self._many, np.array(self._single, np.int64))

    def to_dict(self) -> Mapping[str, float]:
        return {
            "mean": self.mean_s * 1e3,
            "p50": self.percentile(50) * 1e3,
            "p90": self.percentile(90) * 1e3,
            "p95": self.percentile(95) * 1e3,
            "p99": self.percentile(99) * 1e3,
        }
