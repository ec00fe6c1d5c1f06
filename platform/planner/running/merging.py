"""What several frontends tell of their requests, as one window: each request exactly once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import each, whole
from stafette.platform.planner.observation import Finished, Started
from stafette.platform.serving.traffic import Cursor, read_cursor

_U63_END = 1 << 63

Life = tuple[str, int]  # a frontend's name and epoch


@dataclass(slots=True)
class Window:
    """What came in since the last one was taken."""

    arrivals: int = 0
    started: list[Started] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class News:
    cursor: Cursor
    started: Sequence[Started]
    finished: Sequence[Finished]
    waiting: int


class Merged:
    """Keeps a cursor for each life of a frontend, which moves only with an answer that has come."""

    def __init__(self) -> None:
        self._cursors: dict[Life, Cursor] = {}
        self._waiting: dict[Life, int] = {}
        self._window = Window()

    @property
    def waiting(self) -> int:
        """Return how many requests had no worker when their frontends were asked last."""
        return sum(self._waiting.values())

    def meet(self, life: Life, new: bool) -> None:
        """A frontend is there; all of a new one counts, of an old one what comes from now on."""
        if new:
            self._cursors.setdefault(life, (0, 0, 0))

    def question(self, life: Life) -> Cursor | None:
        """Return what a frontend is to be asked."""
        return self._cursors.get(life)

    def take(self, life: Life, answer: object) -> None:
        """Book an answer to `question`; MalformedMessage when it is none."""
        news, known = read_news(answer), self._cursors.get(life)
        self._cursors[life], self._waiting[life] = news.cursor, news.waiting
        if known is not None:
            self._window.arrivals += max(0, news.cursor[0] - known[0])
            self._window.started += news.started
            self._window.finished += news.finished

    def keep(self, lives: Sequence[Life]) -> None:
        """Forget all other frontends: what nobody heard of them is lost."""
        self._cursors = {life: cursor for life, cursor in self._cursors.items() if life in lives}
        self._waiting = {life: count for life, count in self._waiting.items() if life in lives}

    def window(self) -> Window:
        window, self._window = self._window, Window()
        return window


def read_news(answer: object) -> News:
    match answer:
        case [cursor, started, finished, waiting]:
            return News(
                cursor=read_cursor(cursor),
                started=each(started, "started", _read_started),
                finished=each(finished, "finished", _read_finished),
                waiting=whole(waiting, "waiting", _U63_END),
            )
    raise MalformedMessage("traffic", "[cursor, started, finished, waiting]")


def _read_started(row: object) -> Started:
    match row:
        case [int(prompt), int(cached)]:
            return Started(prompt, cached)
    raise MalformedMessage("started", "[prompt tokens, cached tokens]")


def _read_finished(row: object) -> Finished:
    """Numbers that are none are the planner's to judge."""
    match row:
        case [int(prompt), int(output), float(ttft_ms), float() | None as itl_ms, float(wait_ms)]:
            return Finished(prompt, output, ttft_ms, itl_ms, wait_ms)
    raise MalformedMessage("finished", "[tokens, tokens, milliseconds, milliseconds, milliseconds]")
