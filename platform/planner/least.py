"""The smallest number that is enough."""

from collections.abc import Callable

_MOST = 100_000  # that are counted up to; beyond that something else is wrong


def least(low: int, enough: Callable[[int], bool], most: int = _MOST) -> int:
    """Return the smallest number from `low` on that is enough, or `most`."""
    low, high = max(1, low), max(1, low)
    while not enough(high):
        if high >= most:
            return most
        low, high = high + 1, min(2 * high, most)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high
