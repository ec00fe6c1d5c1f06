"""The talk of a visit: small messages on an authenticated connection of its own.

    reader                                         owner
    READ lease, ranges, verify, time left      ->
                                               <-  GO greeting    from here on it holds the blocks
              the bytes travel, in the transport's own way
    SENT                                       ->                 where only the reader knows when
                                               <-  DONE digest    they stayed as the lease says

Instead of GO or DONE the owner may answer NO and an error. As long as the owner works for the
reader this connection stands: so each notices at once when the other's process ends.
"""

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass

from stafette.kvtransfer.control import frames
from stafette.kvtransfer.control.channel import Channel, TlsChannel
from stafette.kvtransfer.control.remote_errors import read_error
from stafette.kvtransfer.errors import MalformedMessage, TransferError
from stafette.kvtransfer.extents import MAX_EXTENTS, Extents
from stafette.kvtransfer.leases.ticket import LEASE_ID_END
from stafette.kvtransfer.strict import exact, number, unpack, whole

READ, GO, SENT, DONE, NO = "read", "go", "sent", "done", "no"
_MAX_BYTES = 16 * MAX_EXTENTS + (64 << 10)
_SAY_S = 10.0  # for a peer to take a message


class TalkEnded(ConnectionError):
    """The other side has closed the connection, between two messages."""


class Talk:
    """One end. One thread at a time says and hears; any may shut it down."""

    def __init__(self, connection: socket.socket) -> None:
        self._channel = _channel_of(connection)
        self.local_host: str = connection.getsockname()[0]  # where the other side reaches us

    def say(self, *message: object) -> None:
        frame = frames.encode(message, _MAX_BYTES)
        self._channel.send(frame, time.monotonic() + _SAY_S)

    def hear(self, deadline: float | None = None) -> list[object]:
        """Return the next message; TimeoutError at the deadline, TalkEnded when there is none."""
        begun = self._channel.recv(frames.HEADER_BYTES, deadline)
        if not begun:
            raise TalkEnded("it closed the connection")
        limit = time.monotonic() + _SAY_S if deadline is None else deadline
        rest = self._channel.recv_exactly(frames.HEADER_BYTES - len(begun), limit)
        length = frames.body_length(begun + rest, _MAX_BYTES)
        body = self._channel.recv_exactly(length, limit)
        return exact(unpack(body, _MAX_BYTES), "message", list)

    def shutdown(self) -> None:
        """End it for both sides; whoever waits here is woken."""
        self._channel.shutdown()

    def close(self) -> None:
        self._channel.close()


def _channel_of(connection: socket.socket) -> Channel:
    if isinstance(connection, ssl.SSLSocket):
        return TlsChannel(connection)
    return Channel(connection)


@dataclass(frozen=True, slots=True)
class Question:
    """What a reader wants."""

    lease_id: int
    source: Extents
    verify: bool
    left_s: float  # until its deadline

    def pack(self) -> list[object]:
        return [READ, self.lease_id, self.source.pack(), self.verify, self.left_s]

    @classmethod
    def read(cls, message: Sequence[object]) -> "Question":
        match message:
            case [_, lease_id, source, verify, left_s]:
                return cls(
                    whole(lease_id, "lease id", LEASE_ID_END),
                    Extents.read(source),
                    exact(verify, "verify", bool),
                    number(left_s, "time left"),
                )
        raise MalformedMessage("question", "[read, lease, ranges, verify, time left]")


def refusal(packed: object) -> TransferError:
    """Return the error that the owner answers with."""
    error = read_error(packed)
    return error if isinstance(error, TransferError) else TransferError(str(error))
