"""The loads of a large fleet as columns of numbers, a row a target, to be calculated with at once.

A row is written anew when its target's view is: most loads stay as they are from one decision to
the next. What a worker told of itself is read once; another board is made when that changes.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stafette.router.filters import FilterConfig, mismatch
from stafette.router.load import IDLE, Load, LoadView
from stafette.router.lots import number_of_target
from stafette.router.member import Member
from stafette.router.performance import Performance
from stafette.router.request import Request

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_COLUMN = {name: number for number, name in enumerate(LoadView._fields)}
Value = TypeVar("Value", bound=Hashable)


class Board:
    def __init__(self, members: Iterable[Member], changed: set[Load]) -> None:
        """Loads put themselves into `changed`; the board takes them out when it looks."""
        self.members = list(members)
        self.views: list[LoadView] = [IDLE] * len(self.members)
        self.row_of = {member.spec.target: row for row, member in enumerate(self.members)}
        specs = [member.spec for member in self.members]
        self.numbers = np.array([number_of_target(spec.target) for spec in specs], np.uint64)
        self.total_blocks = np.array([spec.total_blocks for spec in specs], float)
        self.max_requests = np.array([spec.max_requests for spec in specs], float)
        self.block_bytes = np.array([spec.block_bytes for spec in specs], float)
        self.away = np.array([member.away is not None for member in self.members], bool)
        self.prefills = np.array([spec.role == "prefill" for spec in specs], bool)
        self.decodes = np.array([spec.role == "decode" for spec in specs], bool)
        # Equal numbers for equal things; 0 is no host and no rack.
        self.hosts, _ = _numbered([spec.host for spec in specs], first="")
        self.racks, _ = _numbered([spec.rack for spec in specs], first="")
        self.speeds, self._speeds = _numbered([id(one.learner) for one in self.members])
        sizes = [(id(member.learner), member.spec.block_bytes) for member in self.members]
        self.sizes, _ = _numbered(sizes)
        self.places, _ = _numbered(
            list(zip(sizes, self.hosts.tolist(), self.racks.tolist(), strict=True))
        )
        offers = [(spec.cache.model, spec.loras, spec.taints) for spec in specs]
        self._offers, self._offer_rows = _numbered(offers)
        self._loads = np.zeros((len(_COLUMN), len(self.members)))
        self._due = np.full(len(self.members), -np.inf)  # when a view is no longer good
        self._row_of_load = {member.load: row for row, member in enumerate(self.members)}
        self._changed = changed
        self._now = float("-inf")
        self._names: Sequence[str] = ()
        self._rows_of_names = np.empty(0, np.int64)

    def look(self, now: float) -> None:
        """Bring the rows up to date."""
        rows = set(np.flatnonzero(self._due <= now).tolist())
        rows |= {self._row_of_load[load] for load in self._changed}
        self._changed.clear()
        if now < self._now:  # a clock that goes backwards: no view can be trusted
            rows = set(range(len(self.members)))
        self._now = now
        if rows:
            self._write(list(rows), now)

    def _write(self, rows: list[int], now: float) -> None:
        for row in rows:
            member = self.members[row]
            ms_per_token = member.learner.performance.prefill_ms_per_token
            self.views[row] = member.load.view(now, ms_per_token)
        self._loads[:, rows] = np.array([self.views[row] for row in rows], float).T
        self._due[rows] = [self.members[row].load.still_until for row in rows]

    def rows_of(self, names: Sequence[str]) -> Ints:
        """Return the row of each name; -1: it has none."""
        if names is not self._names:
            rows = [self.row_of.get(name, -1) for name in names]
            self._names, self._rows_of_names = names, np.array(rows, np.int64)
        return self._rows_of_names

    def load(self, name: str) -> Floats:
        """Return a column of the views."""
        column: Floats = self._loads[_COLUMN[name]]
        return column

    def able(self, request: Request, config: FilterConfig) -> Flags:
        """Return who can take the request: those against whom there is no reason (filters.py)."""
        specs = (self.members[row].spec for row in self._offer_rows)
        offers = np.array([mismatch(request, spec) is None for spec in specs], bool)
        able: Flags = offers[self._offers] & ~self.away & ~self._overloaded(config)
        if request.pinned is not None:
            row = self.row_of.get(request.pinned)
            able[np.arange(len(able)) != row] = False
        return able

    def speed(self, of: Callable[[Performance], float]) -> Floats:
        """Return a number of each target's speed."""
        performances = (self.members[row].learner.performance for row in self._speeds)
        return np.array([of(one) for one in performances], float)[self.speeds]

    def _overloaded(self, config: FilterConfig) -> Flags:
        requests = self.load("waiting") + self.load("running")
        over: Flags = (self.max_requests > 0) & (requests >= self.max_requests)
        if config.max_queued_tokens:
            over |= self.load("queued_tokens") > config.max_queued_tokens
        if config.max_used_share:
            known = np.maximum(self.total_blocks, 1.0)
            share = self.load("used_blocks") / known
            over |= (self.total_blocks > 0) & (share > config.max_used_share)
        return over


def _numbered(values: Sequence[Value], first: Value | None = None) -> tuple[Ints, list[int]]:
    """Return a number for each value, equal ones for equal values; and where each is first seen."""
    known: dict[Value, int] = {} if first is None else {first: 0}
    numbers = [known.setdefault(value, len(known)) for value in values]
    rows: dict[int, int] = {}
    for row, number in enumerate(numbers):
        rows.setdefault(number, row)
    return np.array(numbers, np.int64), list(rows.values())
