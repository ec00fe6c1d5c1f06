"""One connection to an owner, while it lasts.

One thread at a time receives: the one that has the role. It is the only one that writes into
destinations, and only for the part that is in hand. So a part that is taken out of the books while
it is not in hand is over: not one byte of it is written any more. What the owner still sends for it
is received, and thrown away.

A session has a thread of its own. Who waits for a job may lend another in its stead, which saves
the way from one thread to the other; as long as it does, no data wakes the session's own. A lent
thread ends no job but the one it waits for: what a callback does there is its own affair.
"""

import threading
import time
from collections.abc import Callable

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.transports.tcp_asking import Asking
from stafette.kvtransfer.transports.tcp_books import Books, Place
from stafette.kvtransfer.transports.tcp_line import Line
from stafette.kvtransfer.transports.tcp_parts import Part
from stafette.kvtransfer.transports.tcp_receiver import Receiver
from stafette.kvtransfer.transports.tcp_way import Way

_CLOSED = "the connection was closed here"
_LINGER_S = 0.05  # in the middle of a frame; a pause of its sender is mostly shorter


class Answers:
    """How soon the owner answers, as a rule; a thread that waits longer should sleep at once."""

    _NEWEST = 0.2  # its weight
    _MOST_S = 0.01  # that count of one answer: a few quick ones outweigh it

    def __init__(self, ask_s: float) -> None:
        self._ask_s = ask_s
        self._typical_s = 0.0

    @property
    def worth_asking_s(self) -> float:
        return self._ask_s if self._typical_s < self._ask_s else 0.0

    def took(self, seconds: float) -> None:
        self._typical_s += self._NEWEST * (min(self._MOST_S, seconds) - self._typical_s)


class Session:
    """`run` is the thread, `lend` another. What is marked so is called with the lock held."""

    def __init__(self, way: Way, books: Books, timeout_s: float) -> None:
        """Dial; TransferError or OSError when there is no connection."""
        self._line = Line(way, timeout_s)
        self._wire = self._line.wire
        self._books = books
        self._lock = books.lock
        self._stall_timeout_s = way.config.stall_timeout_s
        self._asking = Asking(self._line, books)
        self._receiver = Receiver(way, self._line, books, self._asking)
        self._answers = Answers(way.config.ask_us / 1e6)
        self._role = threading.Lock()
        self._failure: BaseException | None = None  # nobody receives any more
        self._lender = 0  # the thread that was lent
        self._left_out = False  # the session's own thread wanted the role, and did not get it
        self._closed = False

    def welcome(self, part: Part) -> None:
        """A part was added to those that wait. The lock is held."""
        now, patience_s = time.monotonic(), self._stall_timeout_s
        if max(self._receiver.heard_at, self._books.oldest_given_up(now)) < now - patience_s:
            self.shutdown()  # it owes us an answer, and says nothing: the next connection may work
            return
        self._asking.push()
        if part.deadline < self._receiver.looks_up_at:
            self._line.wake.ring()

    def gave_up(self, part: Part, place: Place) -> None:
        """A part is to end, which was there. The lock is held."""
        if place is Place.ASKED:
            self._asking.cancel(part)
        if place is Place.IN_HAND or self._receiver.lent_for is not None:
            self._line.wake.ring()

    def shutdown(self) -> None:
        """End the connection; who receives finds out. The lock is held."""
        self._wire.shutdown()

    @property
    def lent_to_us(self) -> bool:
        """Whether it is the calling thread that was lent: a job that ended calls, then."""
        return self._lender == threading.get_ident()

    def close(self) -> None:
        """The thread has left, and the stream does not know the session any more."""
        with self._lock:
            self._closed = True
        self._wire.shutdown()  # a lent thread leaves soon
        with self._role:
            self._failure = self._failure or ConnectionResetError(_CLOSED)
            self._line.close()
        self._receiver.finish_others()

    def run(self) -> None:
        """Receive until the connection ends, by OSError, or by MalformedMessage for nonsense."""
        with self._lock:
            self._asking.push()
        while True:
            looks_up_in_s = max(0.0, self._receiver.looks_up_at - time.monotonic())
            if self._line.await_call(None if self._left_out else looks_up_in_s):
                self._receiver.finish_others()
            self._take_turn()

    def lend(self, part: Part, over: Callable[[], object], until: float) -> None:
        """Receive in the caller's thread until it is over, or the time; not if another one does."""
        if not self._role.acquire(blocking=False):
            return
        try:
            if self._failure is None:
                self._receive_for(part, over, until)
        finally:
            self._role.release()
            if self._left_out:
                self._let_in()

    def _take_turn(self) -> None:
        """Receive what is there, unless a lent thread does: that one calls us when it leaves."""
        self._left_out = True
        if not self._role.acquire(blocking=False):
            return
        self._left_out = False
        try:
            self._receive_what_is_there()
        finally:
            self._role.release()

    def _let_in(self) -> None:
        with self._lock:
            if not self._closed:
                self._line.call.ring()

    def _receive_what_is_there(self) -> None:
        if self._failure is not None:  # a lent thread has met it
            raise self._failure
        try:
            while self._receiver.step(_LINGER_S if self._wire.frame_left else 0.0):
                pass
        except BaseException as error:
            self._failure = error
            raise

    def _receive_for(self, part: Part, over: Callable[[], object], until: float) -> None:
        # Who ends a part looks for us afterwards, and we ask what is over afterwards.
        self._receiver.lent_for, self._lender = part, threading.get_ident()
        self._line.arm(data_wakes=False)
        self._wire.ask_for(self._answers.worth_asking_s)
        try:
            self._step_until(part, over, until)
        except (OSError, MalformedMessage) as error:
            self._failure = error  # the session's own thread ends what ends with it
        except BaseException as error:  # an interrupt, perhaps in the middle of something
            self._failure = InterruptedError(f"a thread that received was ended by {error!r}")
            raise
        finally:
            self._take_back()

    def _step_until(self, part: Part, over: Callable[[], object], until: float) -> None:
        """Nothing that has come is left behind: the session's own thread would not hear of it."""
        began = now = time.monotonic()
        if now < until and not over():
            self._receiver.await_answer(part, until - now)
            if over():
                self._answers.took(time.monotonic() - began)
        while self._wire.has_header or (now < until and not over()):
            self._receiver.step(max(0.0, until - now))
            if now == began:
                self._answers.took(time.monotonic() - began)
            now = time.monotonic()

    def _take_back(self) -> None:
        self._receiver.lent_for, self._lender = None, 0
        self._wire.ask_for(0.0)
        self._line.arm(data_wakes=True)
        if self._failure is not None or self._wire.holds_back:
            self._line.call.ring()
