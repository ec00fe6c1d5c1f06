"""Those of a large fleet who can take one request. Few are looked at one by one: a candidate is
made when it is asked for, and what concerns all is calculated from the board's columns.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import overload

import numpy as np

from stafette.router.board import Board, Floats, Ints
from stafette.router.filters import by_role
from stafette.router.index import NOTHING, Match, Overlap
from stafette.router.lots import lot
from stafette.router.request import Candidate, Option

# A list of them, or a lineup: which is asked by its type, as `isinstance` of a Sequence takes long.
Group = Sequence[Candidate]
Sources = list[tuple[int, Candidate]]  # how many blocks each of them holds; the most first
_MOST_SOURCES = 8
_blocks = itemgetter(0)


class Lineup(Sequence[Candidate]):
    def __init__(
        self, board: Board, rows: Ints, holdings: "Holdings", make: Callable[[int], Candidate]
    ) -> None:
        self.board = board
        self.rows = rows  # of the board, in its order
        self.holdings = holdings
        self._make = make
        self._made: dict[int, Candidate] = {}  # by row

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Candidate: ...
    @overload
    def __getitem__(self, at: slice) -> list[Candidate]: ...
    def __getitem__(self, at: int | slice) -> Candidate | list[Candidate]:
        if isinstance(at, slice):
            return [self._at(row) for row in self.rows[at].tolist()]
        return self._at(int(self.rows[at]))

    def __iter__(self) -> Iterator[Candidate]:
        return map(self._at, self.rows.tolist())

    def load(self, name: str) -> Floats:
        return self.board.load(name)[self.rows]

    def requests(self) -> Floats:
        return self.load("waiting") + self.load("running")

    def held(self) -> Ints:
        """Return how many blocks of the prompt each of them holds."""
        return self.holdings.totals[self.holdings.of_row[self.rows]]

    def drawn(self, request: int) -> "Lineup":
        """Return the same targets in the order of their lots (lots.py)."""
        lots = lot(request, self.board.numbers[self.rows])
        return self._some(self.rows[np.argsort(lots)])

    def parted(self) -> tuple["Lineup", "Lineup"]:
        """Return who only computes prompts, and the others."""
        prefills = self.board.prefills[self.rows]
        return self._some(self.rows[prefills]), self._some(self.rows[~prefills])

    def named(self, options: Iterable[Option]) -> list[Candidate]:
        """Return those who have a part in one of the options, in their order."""
        names = {name for option in options for name in (option.decode, option.prefill) if name}
        return [self._at(row) for row in sorted(map(self.board.row_of.__getitem__, names))]

    def _some(self, rows: Ints) -> "Lineup":
        some = Lineup(self.board, rows, self.holdings, self._make)
        some._made = self._made  # a candidate is made once: it is known by its identity
        return some

    def _at(self, row: int) -> Candidate:
        made = self._made.get(row)
        if made is None:
            made = self._made[row] = self._make(row)
        return made


class Holdings:
    """What each row's target holds of a prompt, equal overlaps as one."""

    def __init__(self, board: Board, match: Match | None) -> None:
        self.of_row = np.zeros(len(board.members), np.int64)
        self.overlaps = [NOTHING]
        totals = [0]
        if match is not None:
            rows_of = board.rows_of(match.names)
            for slots, overlap in match.parts():
                rows = rows_of[np.asarray(slots, np.int64)]
                self.overlaps.append(overlap)
                totals.append(overlap.total)
                less = np.array(totals)[self.of_row[rows]] < overlap.total
                self.of_row[rows[less & (rows >= 0)]] = len(totals) - 1
        self.totals = np.array(totals)

    def at(self, row: int) -> Overlap:
        return self.overlaps[int(self.of_row[row])]


def roles(group: Group) -> tuple[Group, Group]:
    """Return who computes prompts for others, and who decodes (filters.py)."""
    if type(group) is not Lineup:
        return by_role(group)
    prefillers, decoders = group.parted()
    return (prefillers, decoders) if prefillers and decoders else ([], group)


def utilizations(group: Group) -> list[float]:
    if type(group) is Lineup:
        found: list[float] = group.load("utilization").tolist()
        return found
    return [one.load.utilization for one in group]


def least_queue_ms(group: Group) -> float:
    """Return the shortest queue of those that compute prompts; 0 when there is nobody."""
    if type(group) is Lineup:
        decodes = group.board.decodes[group.rows]
        queues = group.load("queue_ms")
        queues = queues if decodes.all() else queues[~decodes]
        return float(queues.min()) if len(queues) else 0.0
    computing = [one for one in group if one.spec.role != "decode"] or group
    return min((one.load.queue_ms for one in computing), default=0.0)


def sources(group: Group) -> tuple[int, Sources]:
    """Return the most blocks that anybody holds, and who holds more than everybody does."""
    if type(group) is Lineup:
        return _sources_of_many(group)
    distinct = {one.overlap for one in group}
    if len(distinct) == 1:
        return distinct.pop().total, []
    totals = {overlap: overlap.total for overlap in distinct}
    most, least = max(totals.values()), min(totals.values())
    more = [(held, one) for one in group if (held := totals[one.overlap]) > least]
    more.sort(key=_blocks, reverse=True)
    return most, more[:_MOST_SOURCES]


def _sources_of_many(group: Lineup) -> tuple[int, Sources]:
    held = group.held()
    most, least = int(held.max()), int(held.min())
    if most == least:
        return most, []
    more = np.flatnonzero(held > least)
    first = more[np.argsort(-held[more], kind="stable")[:_MOST_SOURCES]].tolist()
    return most, [(int(held[at]), group[at]) for at in first]
