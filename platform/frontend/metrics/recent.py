"""The latest requests one by one: percentiles from a histogram are as coarse as its buckets."""

from collections import deque
from collections.abc import Sequence

_KEPT = 4_096  # of each kind; at a higher rate a window is shorter than it was asked for


class Recent:
    """Times are of whatever clock the writer has; the reader must use the same."""

    def __init__(self) -> None:
        self._first_tokens: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._answered: deque[tuple[float, float, float | None]] = deque(maxlen=_KEPT)

    def saw_first_token(self, at: float, ttft_s: float) -> None:
        self._first_tokens.append((at, ttft_s))

    def answered(self, at: float, ttft_s: float, itl_s: float | None) -> None:
        """A request is over; `itl_s` is its mean, None where there was but one token."""
        self._answered.append((at, ttft_s, itl_s))

    def first_tokens_since(self, at: float) -> list[float]:
        return [ttft_s for seen, ttft_s in reversed(self._first_tokens) if seen > at]

    def answered_since(self, at: float) -> list[tuple[float, float | None]]:
        return [(ttft_s, itl_s) for seen, ttft_s, itl_s in reversed(self._answered) if seen > at]


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that so many are not above; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
