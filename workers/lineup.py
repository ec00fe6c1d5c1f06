"""Lineup: sequences in the order of their claim, first in, first out but for priority."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from stafette.workers.sequence import Sequence

_order = attrgetter("order")


class Lineup:
    """A sorted list: a place is found by halving, and taken or left by moving what follows."""

    def __init__(self) -> None:
        self._seqs: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[Sequence]:
        """Go through those that are here now, whoever comes or leaves meanwhile."""
        return iter(self._seqs.copy())

    @property
    def first(self) -> Sequence:
        return self._seqs[0]

    @property
    def last(self) -> Sequence:
        return self._seqs[-1]

    def add(self, seq: Sequence) -> None:
        insort(self._seqs, seq, key=_order)

    def remove(self, seq: Sequence) -> None:
        place = bisect_left(self._seqs, seq.order, key=_order)
        assert self._seqs[place] is seq, "it stands in this line"
        del self._seqs[place]

    def behind(self, seq: Sequence) -> list[Sequence]:
        """Return those whose claim is smaller than that of `seq`."""
        return self._seqs[bisect_left(self._seqs, seq.order, key=_order) :]
