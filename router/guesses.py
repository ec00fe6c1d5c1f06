"""What a target probably holds because requests were sent there, until that is too long ago.

Each target has a few generations. A decision stores its whole chain in the newest one, so every
generation has whole chains, and the longest match in any of them is the match. The oldest one is
forgotten when its time is over, or when the newer ones hold as much as the target can.
"""

from collections import deque
from dataclasses import dataclass

from stafette.router.errors import InvalidValue
from stafette.router.table import BlockTable, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessConfig:
    ttl_s: float | None = 120.0  # after the decision; None: only the target's size is a bound
    generations: int = 5  # the time is kept to one of so many parts

    def __post_init__(self) -> None:
        if self.ttl_s is not None and self.ttl_s <= 0:
            raise InvalidValue("guess.ttl_s", self.ttl_s, "must be above 0, or None")
        if self.generations < 2:
            raise InvalidValue("guess.generations", self.generations, "must be at least 2")


@dataclass(slots=True)
class _Place:
    """One target's generations."""

    capacity_blocks: int | None
    newest: int = 0
    began: float = float("-inf")  # the newest one


class Guesses:
    """Places are numbered like slots; not thread-safe."""

    def __init__(self, table: BlockTable, config: GuessConfig) -> None:
        self._table = table
        self._generations = config.generations
        self._ttl_s = config.ttl_s
        self._places: dict[int, _Place] = {}
        self._ends: deque[tuple[float, int, float]] = deque()  # (when, slot, began)
        self._began: dict[int, float] = {}  # of the generations that hold something

    def __len__(self) -> int:
        """Return how many generations hold something."""
        return len(self._began)

    def add_place(self, place: int, capacity_blocks: int | None = None) -> None:
        if capacity_blocks is None and self._ttl_s is None:
            remedy = "must be given where guesses have no ttl_s"
            raise InvalidValue("capacity_blocks", capacity_blocks, remedy)
        self.remove_place(place)
        self._places[place] = _Place(capacity_blocks)

    def remove_place(self, place: int) -> None:
        if self._places.pop(place, None) is not None:
            self.forget(place)

    def forget(self, place: int) -> None:
        for generation in range(self._generations):
            self._forget(self._slot(place, generation))

    def remember(self, place: int, chain: bytes, width: int, now: float) -> None:
        """A request with this chain goes there."""
        state = self._places[place]
        if self._is_full(place, state) or self._is_old(state, now):
            state.newest = (state.newest + 1) % self._generations
            self._forget(self._slot(place, state.newest))
            state.began = now
        slot = self._slot(place, state.newest)
        if slot not in self._began:
            self._began[slot] = state.began = now
            if self._ttl_s is not None:
                self._ends.append((now + self._ttl_s, slot, now))
        self._table.store(slot, "device", chain, width)

    def match(self, chain: bytes, width: int, now: float) -> list[Group]:
        """Return groups of places; a place may be in several."""
        self._expire(now)
        if not self._began:
            return []
        found = self._table.match(chain, width).groups()
        count = self._generations
        return [Group([slot // count for slot in slots], depths) for slots, depths in found]

    def _slot(self, place: int, generation: int) -> int:
        return place * self._generations + generation

    def _is_full(self, place: int, state: _Place) -> bool:
        if state.capacity_blocks is None:
            return False
        share = state.capacity_blocks / (self._generations - 1)
        return self._table.held(self._slot(place, state.newest)) >= share

    def _is_old(self, state: _Place, now: float) -> bool:
        if self._ttl_s is None:
            return False
        return now - state.began >= self._ttl_s / (self._generations - 1)

    def _expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, slot, began = self._ends.popleft()
            if self._began.get(slot) == began:
                self._forget(slot)

    def _forget(self, slot: int) -> None:
        if self._began.pop(slot, None) is not None:
            self._table.forget(slot)
