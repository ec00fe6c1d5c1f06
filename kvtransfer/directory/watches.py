"""Tells a consumer how the picture changes, as fast as the consumer takes it.

A watch remembers what it has told of each peer and which names may differ from that; the event is
made when it is asked for. So the queue holds no name twice, whatever happens meanwhile, and what
is told always adds up to the picture.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from stafette.kvtransfer.directory.counters import Tally
from stafette.kvtransfer.directory.picture import Picture
from stafette.kvtransfer.directory.records import PeerRecord

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Joined:
    name: str
    record: PeerRecord


@dataclass(frozen=True, slots=True)
class Changed:
    """Other metadata or labels, or another life of the peer: then the epoch differs."""

    name: str
    record: PeerRecord
    previous: PeerRecord


@dataclass(frozen=True, slots=True)
class Left:
    name: str
    record: PeerRecord  # the last


PeerEvent = Joined | Changed | Left
Callback = Callable[[PeerEvent], None]


@dataclass(frozen=True, slots=True)
class Filter:
    prefix: str = ""  # of the name
    labels: Mapping[str, str] = field(default_factory=dict)  # all of these, with these values

    def takes(self, name: str, record: PeerRecord) -> bool:
        return name.startswith(self.prefix) and self.labels.items() <= record.labels.items()


class Watch:
    """An iterator of events, which first tells who is there. Threads may not share it."""

    def __init__(self, picture: Picture, wanted: Filter) -> None:
        self._picture = picture
        self._wanted = wanted
        self._told: dict[str, PeerRecord] = {}
        self._doubtful: dict[str, None] = {}  # names, in the order of their changes
        self._thread: threading.Thread | None = None
        self.closed = False
        with picture.changed:
            self._doubtful.update(dict.fromkeys(picture.records))
            picture.listen(self._doubt)

    def call(self, callback: Callback, tally: Tally) -> None:
        """Have a thread hand the events to the callback, one after the other."""
        self._thread = threading.Thread(
            target=self._run, args=(callback, tally), name="directory-watch", daemon=True
        )
        self._thread.start()

    def next(self, timeout_s: float | None = None) -> PeerEvent | None:
        """Return the next event; None after that time, or when the watch is closed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._picture.changed:
            while not self.closed:
                event = self._find()
                if event is not None:
                    return event
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._picture.changed.wait(left_s)
        return None

    def __iter__(self) -> Iterator[PeerEvent]:
        while (event := self.next()) is not None:
            yield event

    def close(self) -> None:
        """End the iteration; the callback is called no more. Safe to call twice."""
        with self._picture.changed:
            if not self.closed:
                self.closed = True
                self._picture.ignore(self._doubt)
                self._picture.changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                _log.error("a watch's callback still runs after %g s", _CLOSE_TIMEOUT_S)

    def _doubt(self, name: str) -> None:
        self._doubtful[name] = None

    def _find(self) -> PeerEvent | None:
        while self._doubtful:
            name = next(iter(self._doubtful))
            del self._doubtful[name]
            event = self._compare(name)
            if event is not None:
                return event
        return None

    def _compare(self, name: str) -> PeerEvent | None:
        """Return what is new of that peer, and remember that it was told."""
        record, told = self._picture.records.get(name), self._told.pop(name, None)
        if record is None or not self._wanted.takes(name, record):
            return None if told is None else Left(name, told)
        self._told[name] = record
        if told is None:
            return Joined(name, record)
        return None if told == record else Changed(name, record, told)

    def _run(self, callback: Callback, tally: Tally) -> None:
        for event in self:
            try:
                callback(event)
            except Exception:  # the consumer's
                tally.count("callback_errors")
                _log.exception("a watch's callback failed at %s", event.name)
