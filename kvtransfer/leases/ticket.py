"""A ticket: the bytes that an owner gives to whoever may take up a lease."""

from dataclasses import dataclass

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.metadata import MAX_PEER_NAME_BYTES
from stafette.kvtransfer.strict import pack, text, unpack, whole

MAX_TICKET_BYTES = 1_024
LEASE_ID_END = 1 << 63
_EPOCH_END = 1 << 64


@dataclass(frozen=True, slots=True)
class Ticket:
    """Its number is random: who has not got it from the owner cannot guess it."""

    owner: str
    epoch: int
    lease_id: int

    def pack(self) -> bytes:
        return pack([self.owner, self.epoch, self.lease_id])

    @classmethod
    def read(cls, data: bytes) -> "Ticket":
        match unpack(data, MAX_TICKET_BYTES):
            case [owner, epoch, lease_id]:
                return cls(
                    text(owner, "owner", MAX_PEER_NAME_BYTES),
                    whole(epoch, "epoch", _EPOCH_END),
                    whole(lease_id, "lease id", LEASE_ID_END),
                )
        raise MalformedMessage("ticket", "[owner, epoch, lease id]")
