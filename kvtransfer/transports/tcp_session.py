"""One connection to an owner, while it lasts: what is asked on it, and what comes.

Its thread is the only one that writes into destinations, and only for the part that it has in hand.
So a part that is taken out of the books while it is not in hand is over: not one byte of it is
written any more. What the owner still sends for it is received, and thrown away.
"""

import os
import threading
import time
from contextlib import suppress

import numpy as np

from stafette.kvtransfer.errors import MalformedMessage, TransferError
from stafette.kvtransfer.transports.tcp_books import Books, Place
from stafette.kvtransfer.transports.tcp_flow import Flow
from stafette.kvtransfer.transports.tcp_frames import DATA, Cancel, Header
from stafette.kvtransfer.transports.tcp_parts import Part
from stafette.kvtransfer.transports.tcp_ranges import Ranges
from stafette.kvtransfer.transports.tcp_way import Way
from stafette.kvtransfer.transports.tcp_wire import Outcome, wire_of

_LONGEST_PAUSE_S = 3.0  # after which an idle thread looks whether a deadline is near
_SCRATCH = np.empty(64 << 10, np.uint8)  # for bytes that nobody wants; nobody reads it


class Session:
    """`run` is the thread. The other methods are called with the lock held, and never wait."""

    def __init__(self, way: Way, books: Books, lock: threading.Lock, timeout_s: float) -> None:
        """Dial; TransferError or OSError when there is no connection."""
        self._way = way
        self._books = books
        self._lock = lock
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            connection = way.control.dial("tcp", timeout_s)
        except BaseException:
            os.close(self._wake_fd)
            raise
        self._wire = wire_of(connection, way.config.native, self._wake_fd)
        self._outbox = bytearray()  # what the socket has not taken yet
        self._looks_up_at = 0.0
        self._heard_at = time.monotonic()
        way.tally.count("dialled")

    def push(self) -> None:
        """Ask for parts that wait, as far as there is room."""
        while not self._outbox and (part := self._books.ask_next()) is not None:
            self._say(part.message)

    def welcome(self, part: Part) -> None:
        """A part was added to those that wait."""
        now, patience_s = time.monotonic(), self._way.config.stall_timeout_s
        if max(self._heard_at, self._books.oldest_given_up(now)) < now - patience_s:
            self.shutdown()  # it owes us an answer, and says nothing: the next connection may work
            return
        self.push()
        if part.deadline < self._looks_up_at:
            self.wake()

    def gave_up(self, part: Part, place: Place) -> None:
        if place is Place.ASKED:
            self._say(Cancel(part.number).pack())
        elif place is Place.IN_HAND:
            self.wake()

    def wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def shutdown(self) -> None:
        self._wire.shutdown()

    def close(self) -> None:
        """The thread has left."""
        self._wire.close()
        os.close(self._wake_fd)

    def _say(self, message: bytes) -> None:
        if not self._outbox:
            try:
                message = message[self._wire.send_now(message) :]
            except OSError:
                self.shutdown()  # the thread finds out why
                return
            if message:
                self.wake()
        self._outbox += message

    # The thread

    def run(self) -> None:
        """Receive until the connection ends, by OSError, or by MalformedMessage for nonsense."""
        with self._lock:
            self.push()
        while True:
            outcome = self._receive(None)
            while outcome is Outcome.FRAME:
                header = self._wire.take_header()
                outcome = self._take(header) if header.kind == DATA else self._settle(header)

    def _receive(self, flow: Flow | None) -> Outcome:
        """Receive something; whoever waits for this thread, or is overdue, has its turn first."""
        now = time.monotonic()
        if now >= self._looks_up_at or self._outbox:
            self._look_up(now)
        pause_s = max(0.0, self._looks_up_at - now)
        outcome = self._wire.receive(flow, bool(self._outbox), pause_s)
        if outcome is Outcome.WOKEN:
            with suppress(BlockingIOError):  # the socket takes bytes again
                os.eventfd_read(self._wake_fd)
            self._looks_up_at = 0.0
        elif outcome is not Outcome.TIMED_OUT:
            self._heard_at = time.monotonic()
        return outcome

    def _look_up(self, now: float) -> None:
        """Send what is left over, and end what is overdue."""
        ended = list[tuple[Part, TransferError]]()
        with self._lock:
            self._flush()
            for part in list(self._books):
                error = part.why_over(now)
                if error is not None and self._give_up(part, now):
                    ended.append((part, error))
            soonest = min((part.deadline for part in self._books), default=now + _LONGEST_PAUSE_S)
            self._looks_up_at = min(soonest, now + _LONGEST_PAUSE_S)
        for part, error in ended:
            part.finish(error)

    def _flush(self) -> None:
        if self._outbox:
            sent = self._wire.send_now(bytes(self._outbox))
            del self._outbox[:sent]
            self.push()

    def _give_up(self, part: Part, now: float) -> bool:
        """Return whether the part is over; what is in hand is not, and what had ended was."""
        place = self._books.give_up(part, now)
        if place is Place.ASKED:
            self.gave_up(part, place)
        return place in (Place.ASKED, Place.WAITING)

    def _take(self, header: Header) -> Outcome:
        with self._lock:
            part = self._books.take_in_hand(header.number)
        if part is None:
            return self._discard(header.number)
        if 0 < header.num_bytes <= part.flow.ranges.left:
            return self._fill(part)
        expected = f"1..{part.flow.ranges.left} bytes, not {header.num_bytes}"
        raise MalformedMessage("frame length", expected)

    def _fill(self, part: Part) -> Outcome:
        """Receive a frame of a part, perhaps its next ones too, unless it is to end."""
        outcome, error = Outcome.DONE, None
        while self._wire.frame_left and error is None:
            before = part.flow.ranges.left
            try:
                outcome = self._receive(part.flow)
            finally:
                self._arrived(part, before - part.flow.ranges.left)
            error = part.why_over(time.monotonic())
        with self._lock:
            self._books.put_down()
            if error is not None:
                self._give_up(part, time.monotonic())
        if error is not None:
            part.finish(error)
            outcome = self._discard(part.number)
        return outcome

    def _arrived(self, part: Part, num_bytes: int) -> None:
        part.arrived(num_bytes)
        self._way.tally.count("bytes_in", num_bytes)

    def _discard(self, number: int) -> Outcome:
        """Throw the rest of a frame away."""
        outcome = Outcome.DONE
        num_bytes = self._wire.frame_left
        flow = Flow(number, Ranges.over(_SCRATCH, *divmod(num_bytes, len(_SCRATCH))))
        while self._wire.frame_left:
            outcome = self._receive(flow)
        return outcome

    def _settle(self, header: Header) -> Outcome:
        """The owner has ended a part, which may make room for others."""
        body = self._wire.receive_body(header.num_bytes, self._way.config.stall_timeout_s)
        with self._lock:
            part = self._books.find(header.number)
        verdict = None if part is None else part.verdict(header, body)
        with self._lock:
            part = self._books.settle(header.number)
            self.push()
        if part is not None:  # it may have been given up just now
            part.finish(verdict)
        return Outcome.DONE
