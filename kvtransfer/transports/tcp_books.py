"""Which parts wait on a stream, which are asked for, and whose bytes come in right now.

No input or output happens here. Whoever uses the books holds their lock.
"""

import threading
from collections import deque
from collections.abc import Iterator
from enum import Enum, auto

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.extents import MAX_EXTENTS
from stafette.kvtransfer.transports.tcp_parts import Part


class Place(Enum):
    NOWHERE = auto()  # it has ended
    WAITING = auto()
    ASKED = auto()
    IN_HAND = auto()


class Books:
    """A part that was given up leaves its number here, until the owner says that it has ended."""

    def __init__(self, max_requests: int) -> None:
        self.lock = threading.Lock()
        self.waiting: deque[Part] = deque()
        self._max_requests = max_requests
        self._asked: dict[int, Part] = {}
        self._in_hand: Part | None = None
        self._given_up: dict[int, float] = {}  # number -> when

    def __iter__(self) -> Iterator[Part]:
        yield from self._asked.values()
        yield from self.waiting

    @property
    def num_bytes(self) -> int:
        """How many bytes are still to come."""
        return sum(part.flow.ranges.left for part in self)

    def ask_next(self) -> Part | None:
        """Return a part to ask for, as far as the owner's limits allow another one."""
        if not self.waiting:
            return None
        under_way = len(self._asked) + len(self._given_up)
        num_extents = sum(part.num_extents for part in self._asked.values())
        full = num_extents + self.waiting[0].num_extents > MAX_EXTENTS
        if under_way >= self._max_requests or (self._asked and full):
            return None
        part = self.waiting.popleft()
        self._asked[part.number] = part
        return part

    def find(self, number: int) -> Part | None:
        """Return what the owner speaks of; None when nobody wants it any more."""
        part = self._asked.get(number)
        if part is None and number not in self._given_up:
            raise MalformedMessage("number", f"a job that was asked for, not {number}")
        return part

    def take_in_hand(self, number: int) -> Part | None:
        """Begin to receive bytes; None when nobody wants them any more."""
        self._in_hand = self.find(number)
        return self._in_hand

    def expect(self, part: Part) -> bool:
        """Take in hand what was asked for, before any of it has come; False when it was not."""
        expected = self._in_hand is None and part.number in self._asked
        if expected:
            self._in_hand = part
        return expected

    def put_down(self) -> None:
        """The bytes that come next are others."""
        self._in_hand = None

    def settle(self, number: int) -> Part | None:
        """The owner has ended it; None when nobody waits for it any more."""
        self._given_up.pop(number, None)
        return self._asked.pop(number, None)

    def give_up(self, part: Part, now: float) -> Place:
        """Take a part out, and tell where it was. What is in hand stays: whoever has it ends it."""
        if part is self._in_hand:
            return Place.IN_HAND
        if self._asked.pop(part.number, None) is not None:
            self._given_up[part.number] = now
            return Place.ASKED
        if part in self.waiting:
            self.waiting.remove(part)
            return Place.WAITING
        return Place.NOWHERE

    def oldest_given_up(self, default: float) -> float:
        return min(self._given_up.values(), default=default)

    def lose(self) -> list[Part]:
        """The connection is gone: return what was asked for on it."""
        lost = list(self._asked.values())
        self._asked.clear()
        self._given_up.clear()
        self._in_hand = None
        return lost

    def drop_waiting(self) -> list[Part]:
        waiting = list(self.waiting)
        self.waiting.clear()
        return waiting
