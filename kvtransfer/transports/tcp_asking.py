"""What is said to an owner on one connection: requests, as far as there is room, and cancels."""

import os
from contextlib import suppress

from stafette.kvtransfer.transports.tcp_books import Books
from stafette.kvtransfer.transports.tcp_frames import Cancel
from stafette.kvtransfer.transports.tcp_parts import Part
from stafette.kvtransfer.transports.tcp_wire import Wire


class Asking:
    """Everything here is called with the stream's lock held, and nothing waits.

    Whoever has something to say sends it himself. What the socket does not take is left to the
    thread that receives, which is woken for it.
    """

    def __init__(self, wire: Wire, books: Books, wake_fd: int) -> None:
        self._wire = wire
        self._books = books
        self._wake_fd = wake_fd
        self._outbox = bytearray()  # what the socket has not taken yet

    @property
    def left_over(self) -> bool:
        return bool(self._outbox)

    def push(self) -> None:
        """Ask for parts that wait."""
        while not self._outbox and (part := self._books.ask_next()) is not None:
            self._say(part.message)

    def cancel(self, part: Part) -> None:
        self._say(Cancel(part.number).pack())

    def flush(self) -> None:
        """Send what is left over; then there may be room for more."""
        if self._outbox:
            sent = self._wire.send_now(bytes(self._outbox))
            del self._outbox[:sent]
            self.push()

    def wake(self) -> None:
        """Let the thread that receives look up."""
        os.eventfd_write(self._wake_fd, 1)

    def woken(self) -> None:
        with suppress(BlockingIOError):  # it was the socket, which takes bytes again
            os.eventfd_read(self._wake_fd)

    def _say(self, message: bytes) -> None:
        if not self._outbox:
            try:
                message = message[self._wire.send_now(message) :]
            except OSError:
                self._wire.shutdown()  # who receives finds out why
                return
            if message:
                self.wake()
        self._outbox += message
