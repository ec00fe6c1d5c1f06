"""What a frontend notes of its requests for the planner: counts, and samples of the latest ones.

Rows are numbered over the book's life, so that a reader who says what it has gets each row once.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import whole
from stafette.workers.request import OutputDelta

_KEPT = 4_096  # of each kind; a reader that comes more seldom misses the oldest
_U63_END = 1 << 63

Row = tuple[float | None, ...]
Cursor = tuple[int, int, int]  # arrivals, started rows, finished rows that a reader has


class Rows:
    """The latest of a series of rows."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=_KEPT)
        self.count = 0

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self.count += 1

    def after(self, known: int) -> Sequence[Row]:
        """Return those that came behind the first `known`, as far as they are kept."""
        fresh = min(max(0, self.count - known), len(self._rows))
        return list(self._rows)[len(self._rows) - fresh :]


class TrafficBook:
    """Written by the dispatcher: two rows for each answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.arrivals = 0
        self.started = Rows()  # prompt tokens, cached tokens
        self.finished = Rows()  # prompt tokens, output tokens, TTFT, ITL, wait: milliseconds
        self.clock = clock

    def arrive(self, prompt_tokens: int) -> "AnswerNotes":
        self.arrivals += 1
        return AnswerNotes(self, prompt_tokens, self.clock())

    def news(self, known: object) -> list[object]:
        """Return [cursor, started, finished] behind a reader's cursor; None: only the new one."""
        cursor = [self.arrivals, self.started.count, self.finished.count]
        if known is None:
            return [cursor, [], []]
        _, started, finished = read_cursor(known)
        return [cursor, self.started.after(started), self.finished.after(finished)]


class AnswerNotes:
    """The times of one answer, over all workers that it comes from."""

    __slots__ = ("_arrived", "_book", "_first", "_placed", "_prompt_tokens", "_tokens")

    def __init__(self, book: TrafficBook, prompt_tokens: int, arrived: float) -> None:
        self._book = book
        self._prompt_tokens = prompt_tokens
        self._arrived = arrived
        self._placed: float | None = None
        self._first: float | None = None
        self._tokens = 0

    def placed(self) -> None:
        """A worker has been found; only the first one counts."""
        if self._placed is None:
            self._placed = self._book.clock()

    def see(self, delta: OutputDelta) -> None:
        if self._first is None and delta.token_ids:
            self._first = self._book.clock()
            self._book.started.add((self._prompt_tokens, delta.num_cached_tokens))
        self._tokens += len(delta.token_ids)
        if delta.finish_reason is not None and delta.error is None:
            self._finish()

    def _finish(self) -> None:
        if self._first is None or self._placed is None:
            return  # no token was asked for
        took_ms = (self._book.clock() - self._first) * 1e3
        row = (
            self._prompt_tokens,
            self._tokens,
            (self._first - self._arrived) * 1e3,
            took_ms / (self._tokens - 1) if self._tokens > 1 else None,
            (self._placed - self._arrived) * 1e3,
        )
        self._book.finished.add(row)


def read_cursor(value: object) -> Cursor:
    """MalformedMessage when it is none."""
    match value:
        case [arrivals, started, finished]:
            return (
                whole(arrivals, "arrivals", _U63_END),
                whole(started, "started", _U63_END),
                whole(finished, "finished", _U63_END),
            )
    raise MalformedMessage("cursor", "[arrivals, started, finished]")
