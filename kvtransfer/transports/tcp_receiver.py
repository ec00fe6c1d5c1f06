"""What an owner sends on one connection, frame by frame, and what becomes of the parts of jobs."""

import time
from collections import deque

import numpy as np

from stafette.kvtransfer.errors import MalformedMessage, TransferError
from stafette.kvtransfer.transports.tcp_asking import Asking
from stafette.kvtransfer.transports.tcp_books import Books, Place
from stafette.kvtransfer.transports.tcp_flow import Flow
from stafette.kvtransfer.transports.tcp_frames import CARRIES_BYTES, FAILED, LAST, Header
from stafette.kvtransfer.transports.tcp_line import Line
from stafette.kvtransfer.transports.tcp_parts import Part
from stafette.kvtransfer.transports.tcp_ranges import Ranges
from stafette.kvtransfer.transports.tcp_way import Way
from stafette.kvtransfer.transports.tcp_wire import Outcome

_LONGEST_PAUSE_S = 3.0  # after which an idle thread looks whether a deadline is near
_SCRATCH = np.empty(64 << 10, np.uint8)  # for bytes that nobody wants; nobody reads it


class Receiver:
    """One thread at a time may call `step`; between two steps it may be another one."""

    def __init__(self, way: Way, line: Line, books: Books, asking: Asking) -> None:
        self._way = way
        self._line = line
        self._wire = line.wire
        self._books = books
        self._lock = books.lock
        self._asking = asking
        self._flow: Flow | None = None  # where the bytes of the current frame go
        self._part: Part | None = None  # whose bytes they are; None: nobody wants them
        self._last: Header | None = None  # of the current frame, when it also ends the part
        self._others: deque[tuple[Part, TransferError | None]] = deque()
        self.lent_for: Part | None = None  # the caller waits for that one, and was lent for it
        self.looks_up_at = 0.0
        self.heard_at = time.monotonic()

    def step(self, patience_s: float) -> bool:
        """Receive something, and do what it asks for; return whether something has come.

        OSError at the end of the connection, MalformedMessage for nonsense.
        """
        if self._wire.frame_left:
            return self._go_on(patience_s)
        if not self._wire.has_header and self._receive(None, patience_s) is not Outcome.FRAME:
            return False
        header = self._wire.take_header()
        if header.kind in CARRIES_BYTES:
            self._begin(header)
            return self._go_on(patience_s)
        self._settle(header)
        return True

    def await_answer(self, part: Part, patience_s: float) -> None:
        """Receive a small job in one go, if it is what comes next; otherwise `step` goes on."""
        wire, flow = self._wire, part.flow
        if not wire.native or flow.digest is not None or wire.frame_left or wire.has_header:
            return
        with self._lock:
            if not self._books.expect(part):
                return
        before, pause_s = flow.ranges.left, self._pause_s(patience_s)
        outcome = self._noted(wire.receive_answer(flow, self._asking.left_over, pause_s))
        if outcome is not Outcome.WHOLE and not wire.frame_left:
            self._put_back(part)
            return
        self._arrived(part, before - flow.ranges.left)
        if outcome is Outcome.WHOLE:
            wire.forget_header()
            self._end(part.number, None)
        else:
            self._part, self._flow, self._last = part, flow, wire.begun_answer()
            self._look_at(part)

    def finish_others(self) -> None:
        """End what lent threads have left over. Needs no role."""
        while self._others:
            part, error = self._others.popleft()
            part.finish(error)

    def _finish(self, part: Part, error: TransferError | None) -> None:
        if self.lent_for is None or self.lent_for is part:
            part.finish(error)
        else:
            self._others.append((part, error))
            self._line.call.ring()

    def _receive(self, flow: Flow | None, patience_s: float) -> Outcome:
        pause_s = self._pause_s(patience_s)
        return self._noted(self._wire.receive(flow, self._asking.left_over, pause_s))

    def _pause_s(self, patience_s: float) -> float:
        """Return how long to wait for bytes; whoever is overdue has its turn first."""
        now = time.monotonic()
        if now >= self.looks_up_at or self._asking.left_over:
            self._look_up(now)
        return min(patience_s, max(0.0, self.looks_up_at - now))

    def _noted(self, outcome: Outcome) -> Outcome:
        if outcome is Outcome.WOKEN:
            self._line.wake.stop()
            self.looks_up_at = 0.0
        elif outcome is not Outcome.TIMED_OUT:
            self.heard_at = time.monotonic()
        return outcome

    def _look_up(self, now: float) -> None:
        """Send what is left over, and end what is overdue."""
        ended = list[tuple[Part, TransferError]]()
        with self._lock:
            self._asking.flush()
            for part in list(self._books):
                error = part.why_over(now)
                if error is not None and self._give_up(part, now):
                    ended.append((part, error))
            soonest = min((part.deadline for part in self._books), default=now + _LONGEST_PAUSE_S)
            self.looks_up_at = min(soonest, now + _LONGEST_PAUSE_S)
        for part, error in ended:
            self._finish(part, error)

    def _give_up(self, part: Part, now: float) -> bool:
        """Return whether the part is over; what is in hand is not, and what had ended was."""
        place = self._books.give_up(part, now)
        if place is Place.ASKED:
            self._asking.cancel(part)
        return place in (Place.ASKED, Place.WAITING)

    def _put_back(self, part: Part) -> None:
        """Nothing of what was in hand has come. Who gave it up meanwhile has left its end to us."""
        now = time.monotonic()
        with self._lock:
            self._books.put_down()
            error = part.why_over(now)
            over = error is not None and self._give_up(part, now)
        if over:
            self._finish(part, error)

    def _begin(self, header: Header) -> None:
        """Find out where the bytes of a frame go."""
        with self._lock:
            part = self._part = self._books.take_in_hand(header.number)
        self._last = header if header.kind == LAST else None
        if part is None:
            self._flow = self._nowhere(header.number)
            return
        left = part.flow.ranges.left
        too_few = self._last is not None and header.num_bytes < left
        if too_few or not 0 < header.num_bytes <= left:
            raise MalformedMessage("frame length", f"1..{left} bytes, not {header.num_bytes}")
        self._flow = part.flow

    def _go_on(self, patience_s: float) -> bool:
        """Receive more of the current frame, perhaps the next ones of its part as well."""
        part, flow = self._part, self._flow
        assert flow is not None, "a frame was begun"
        before = flow.ranges.left
        try:
            outcome = self._receive(flow, patience_s)
        finally:
            if part is not None:
                self._arrived(part, before - flow.ranges.left)
        if self._last is not None and not self._wire.frame_left:
            self._settle(self._last)
        elif part is not None:
            self._look_at(part)
        return outcome is not Outcome.TIMED_OUT

    def _arrived(self, part: Part, num_bytes: int) -> None:
        part.arrived(num_bytes)
        self._way.tally.count("bytes_in", num_bytes)

    def _look_at(self, part: Part) -> None:
        """Go on with a part in hand, or put it down: its frame is whole, or it is to end."""
        error = part.why_over(time.monotonic())
        if self._wire.frame_left and error is None:
            return
        self._part = None
        with self._lock:
            self._books.put_down()
            if error is not None:
                self._give_up(part, time.monotonic())
        if error is not None:
            self._finish(part, error)
            self._flow = self._nowhere(part.number)

    def _nowhere(self, number: int) -> Flow:
        """Return where the rest of a frame is thrown away."""
        return Flow(number, Ranges.over(_SCRATCH, *divmod(self._wire.frame_left, len(_SCRATCH))))

    def _settle(self, header: Header) -> None:
        """The owner has ended a part, which may make room for others."""
        body = b""
        if header.kind == FAILED:
            body = self._wire.receive_body(header.num_bytes, self._way.config.stall_timeout_s)
        self._part = None
        with self._lock:
            self._books.put_down()
            part = self._books.find(header.number)
        self._end(header.number, None if part is None else part.verdict(header, body))

    def _end(self, number: int, verdict: TransferError | None) -> None:
        with self._lock:
            self._books.put_down()
            part = self._books.settle(number)
            self._asking.push()
        if part is not None:  # it may have been given up just now
            self._finish(part, verdict)
