"""What mock workers tell each other of a hand-over, and the way on which it goes."""

from dataclasses import dataclass
from typing import Protocol

from stafette.kvtransfer.connectors.p2p import messages
from stafette.kvtransfer.connectors.p2p.messages import Ended, Piece
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.notifications import MAX_PAYLOAD_BYTES
from stafette.kvtransfer.strict import pack, text, unpack, whole

_MAX_ID_BYTES = 128
_U31_END = 1 << 31


@dataclass(frozen=True, slots=True)
class Read:
    """A reader needs a piece no more: it has it, or does not want it."""

    handoff: str
    first: int

    def pack(self) -> bytes:
        return pack(["read", self.handoff, self.first])


News = Piece | Ended | Read


def read_news(data: bytes) -> News:
    """Read what `pack` of any of them made; MalformedMessage for what is not that."""
    if data.startswith(messages.PREFIX):
        return messages.read_news(data)
    match unpack(data, MAX_PAYLOAD_BYTES):
        case ["read", handoff, first]:
            return Read(
                text(handoff, "hand-off", _MAX_ID_BYTES), whole(first, "first block", _U31_END)
            )
    raise MalformedMessage("news", "a piece, its end, or that it was read")


class Wire(Protocol):
    """One worker's way to the others. Neither method waits."""

    def tell(self, peer: str, news: News) -> bool:
        """Send news; False when nobody of this name is known."""

    def probe(self, peer: str) -> None:
        """Find out whether a peer is there; the connector hears it when it is not."""


class NoWire(Wire):
    """Of a worker that is alone."""

    def tell(self, peer: str, news: News) -> bool:
        return False

    def probe(self, peer: str) -> None:
        pass
