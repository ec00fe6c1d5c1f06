"""Rounds that alternate: what is compared runs side by side in time, medians decide."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, name), every name once a round; who begins changes from round to round."""
    for number in range(rounds):
        first = number % len(names) if names else 0
        for name in [*names[first:], *names[:first]]:
            yield number, name


def alternate(
    names: Sequence[str], rounds: int, run: Callable[[str, int], float | None]
) -> dict[str, list[float]]:
    """Return what `run(name, round)` gave for each name; None is a run that failed."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for number, name in turns(names, rounds):
        value = run(name, number)
        if value is not None:
            found[name].append(value)
    return found


def middle(values: Sequence[float]) -> float | None:
    """Return the median, or None of nothing."""
    return median(values) if values else None


def ratio(value: float | None, reference: float | None) -> float | None:
    """Return value / reference, or None where either is not known."""
    return value / reference if value is not None and reference else None
