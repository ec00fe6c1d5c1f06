"""What is said to an owner on one connection: requests, as far as there is room, and cancels."""

from stafette.kvtransfer.transports.tcp_books import Books
from stafette.kvtransfer.transports.tcp_frames import Cancel
from stafette.kvtransfer.transports.tcp_line import Line
from stafette.kvtransfer.transports.tcp_parts import Part


class Asking:
    """Everything here is called with the lock of the books held, and nothing waits.

    Whoever has something to say sends it himself. What the socket does not take is left to the
    thread that receives, which is woken for it.
    """

    def __init__(self, line: Line, books: Books) -> None:
        self._wire = line.wire
        self._wake = line.wake
        self._books = books
        self._outbox = bytearray()  # what the socket has not taken yet

    @property
    def left_over(self) -> bool:
        return bool(self._outbox)

    def push(self) -> None:
        """Ask for parts that wait."""
        while not self._outbox and (part := self._books.ask_next()) is not None:
            self._say(part.message)
            part.message = b""  # it may be long

    def cancel(self, part: Part) -> None:
        self._say(Cancel(part.number).pack())

    def flush(self) -> None:
        """Send what is left over; then there may be room for more."""
        if self._outbox:
            sent = self._wire.send_now(bytes(self._outbox))
            del self._outbox[:sent]
            self.push()

    def _say(self, message: bytes) -> None:
        if not self._outbox:
            try:
                message = message[self._wire.send_now(message) :]
            except OSError:
                self._wire.shutdown()  # who receives finds out why
                return
            if message:
                self._wake.ring()
        self._outbox += message
