"""One of the connections to an owner: dials when a job comes, and again when it was lost."""

import logging
import threading
import time
from collections.abc import Callable

from stafette.kvtransfer.errors import (
    MalformedMessage,
    PeerLost,
    TransferCancelled,
    TransferError,
    TransportUnavailable,
)
from stafette.kvtransfer.transports.tcp_books import Books, Place
from stafette.kvtransfer.transports.tcp_parts import Part
from stafette.kvtransfer.transports.tcp_session import Session
from stafette.kvtransfer.transports.tcp_way import Way

_log = logging.getLogger(__name__)

_JOIN_S = 5.0
_LEAST_S = 1e-3  # for a connection to be made
_CLOSED = "the link to it was closed here"


class Stream:
    """Any thread may call it, and none waits but in `close`. Parts finish outside of its lock."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._books = Books(way.max_requests)
        self._lock = self._books.lock
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._closed = False

    @property
    def num_bytes(self) -> int:
        """How many bytes of its parts are still to come."""
        with self._lock:
            return self._books.num_bytes

    def start(self, part: Part) -> None:
        with self._lock:
            refusal = self._why_not(part) or self._take_up(part)
        if refusal is not None:
            part.finish(refusal)

    def interrupt(self, part: Part) -> None:
        """End a part soon; it may have ended already."""
        with self._lock:
            place = self._books.give_up(part, time.monotonic())
            if self._session is not None:
                self._session.gave_up(part, place)
        if place in (Place.ASKED, Place.WAITING):
            part.finish(TransferCancelled(self._way.peer))

    def lend(self, part: Part, over: Callable[[], object], until: float) -> None:
        """Receive in the caller's thread until it is over, or the time; perhaps not at all."""
        with self._lock:
            session = self._session
        if session is not None:
            session.lend(part, over, until)

    def close(self) -> None:
        """End all parts with PeerLost. Safe to call twice."""
        with self._lock:
            self._closed = True
            waiting = self._books.drop_waiting()
            thread, session = self._thread, self._session
            if session is not None:
                session.shutdown()
        for part in waiting:
            part.finish(PeerLost(self._way.peer, _CLOSED))
        # A thread that still dials ends by itself, when the time for that is over. Who is called by
        # a job that ended is that thread, or one that it waits for.
        ours = (None, threading.current_thread())
        if session is not None and thread not in ours and not session.lent_to_us:
            thread.join(_JOIN_S)

    def _why_not(self, part: Part) -> TransferError | None:
        if self._closed:
            return PeerLost(self._way.peer, _CLOSED)
        return part.why_over(time.monotonic())

    def _take_up(self, part: Part) -> TransferError | None:
        self._books.waiting.append(part)
        if self._session is not None:
            self._session.welcome(part)
        elif self._thread is None:
            return self._begin()
        return None

    def _begin(self) -> TransferError | None:
        thread = threading.Thread(target=self._run, name=f"tcp-{self._way.peer}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more of them
            self._books.drop_waiting()
            return TransportUnavailable("tcp", self._way.peer, str(error))
        self._thread = thread
        return None

    def _run(self) -> None:
        """The thread: one connection after the other, as long as parts wait."""
        while True:
            lost, error = self._live()
            for part in lost:
                part.finish(type(error)(*error.args))
            with self._lock:
                if not self._books.waiting:
                    self._thread = None
                    return

    def _live(self) -> tuple[list[Part], TransferError]:
        """Serve as long as a connection lasts; return the parts that end with it, and why."""
        try:
            session = Session(self._way, self._books, self._dial_s())
        except TransferError as error:
            return self._drop_waiting(), error
        except Exception as error:
            _log.exception("no connection to %s can be made", self._way.peer)
            return self._drop_waiting(), PeerLost(self._way.peer, f"no connection ({error})")
        reason = self._serve(session)
        with self._lock:
            self._session = None
        session.close()  # from here on nobody receives
        with self._lock:
            lost = self._books.lose()
        return lost, PeerLost(self._way.peer, _CLOSED if self._closed else reason)

    def _serve(self, session: Session) -> str:
        """Return why the connection has ended."""
        with self._lock:
            self._session = session
            if self._closed:
                session.shutdown()
        try:
            session.run()
        except OSError as error:
            return error.strerror or str(error)
        except MalformedMessage as error:
            self._way.tally.count("malformed")
            _log.warning("closed the connection to %s: %s", self._way.peer, error)
            return f"it breaks the format ({error})"
        except Exception:  # our bug: no job may wait for ever
            _log.exception("the connection to %s failed", self._way.peer)
        return "a failure here, which the log tells"

    def _dial_s(self) -> float:
        with self._lock:
            latest = max((part.deadline for part in self._books), default=0.0)
        left_s = max(_LEAST_S, latest - time.monotonic())
        return min(self._way.config.dial_timeout_s, left_s)

    def _drop_waiting(self) -> list[Part]:
        with self._lock:
            return self._books.drop_waiting()
