"""News of hand-offs that nobody waits for: kept for a while, or refused when they are over."""

from collections import OrderedDict, deque
from collections.abc import Callable

from stafette.kvtransfer.connectors.p2p.messages import Ended, Piece

_REMEMBERED = 4_096  # hand-offs that are over

News = tuple[str, Piece | Ended]  # from which peer


class EarlyNews:
    """An owner may be quicker than the reader's own preparations. Not thread-safe.

    `drop` hears of each one that nobody has wanted in time.
    """

    def __init__(self, keep_s: float, most: int, drop: Callable[[News], None]) -> None:
        self._keep_s = keep_s
        self._most = most
        self._drop = drop
        self._kept: deque[tuple[float, News]] = deque()
        self._over: OrderedDict[str, None] = OrderedDict()

    def add(self, news: News, now: float) -> None:
        if news[1].handoff in self._over:
            self._drop(news)
            return
        if len(self._kept) >= self._most:
            self._drop(self._kept.popleft()[1])
        self._kept.append((now + self._keep_s, news))

    def take(self, handoff: str) -> list[News]:
        """Return what has come for a hand-off, in order."""
        found = [news for _, news in self._kept if news[1].handoff == handoff]
        if found:
            self._kept = deque(entry for entry in self._kept if entry[1][1].handoff != handoff)
        return found

    def end(self, handoff: str) -> None:
        """What is here, and what comes from now on, is not wanted."""
        self._over[handoff] = None
        self._over.move_to_end(handoff)
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
        for news in self.take(handoff):
            self._drop(news)

    def is_over(self, handoff: str) -> bool:
        return handoff in self._over

    def expire(self, now: float) -> float | None:
        """Drop what was kept long enough; return when to come again."""
        while self._kept and self._kept[0][0] <= now:
            self._drop(self._kept.popleft()[1])
        return self._kept[0][0] if self._kept else None

    def clear(self) -> None:
        while self._kept:
            self._drop(self._kept.popleft()[1])
