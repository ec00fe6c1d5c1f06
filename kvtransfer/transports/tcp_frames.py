"""What travels on a connection: messages of the reader, frames of the owner.

    reader                                       owner
    READ number, lease, epoch, ranges, ...  ->
                                             <-  DATA number, bytes    again and again
                                             <-  DONE number, digest   or   FAILED number, error
                                                 or LAST number, bytes, digest: DATA and DONE
    CANCEL number                           ->

The reader's messages are msgpack behind a length. The owner's frames have a header of fixed size.
The frames of several jobs alternate; every READ is answered by one DONE, LAST or FAILED, also
when a CANCEL followed it.
"""

import struct
from dataclasses import dataclass

from stafette.kvtransfer.control import frames
from stafette.kvtransfer.control.remote_errors import pack_error, read_error
from stafette.kvtransfer.errors import KvTransferError, MalformedMessage, TransferError
from stafette.kvtransfer.extents import MAX_EXTENTS, Extents
from stafette.kvtransfer.leases.ticket import LEASE_ID_END
from stafette.kvtransfer.strict import exact, pack, unpack, whole
from stafette.kvtransfer.transports.tcp_config import MAX_FRAME_BYTES

DATA, DONE, FAILED, LAST = 0x5354_4601, 0x5354_4602, 0x5354_4603, 0x5354_4604
CARRIES_BYTES = (DATA, LAST)  # of a job
MAX_REQUEST_BYTES = 16 * MAX_EXTENTS + 1_024
MAX_ERROR_BYTES = 64 << 10
NUMBER_END = 1 << 63
_U64_END = 1 << 64
_READ, _CANCEL = 1, 2
_HEADER = struct.Struct("<IIQQ")
HEADER_BYTES = _HEADER.size
_MOST_BYTES = {DATA: MAX_FRAME_BYTES, DONE: 0, FAILED: MAX_ERROR_BYTES, LAST: MAX_FRAME_BYTES}


@dataclass(frozen=True, slots=True)
class Header:
    kind: int
    num_bytes: int  # that follow
    number: int  # of the job, on this connection
    digest: int = 0  # with DONE and LAST of a job that is verified: of all its bytes

    def pack(self) -> bytes:
        return _HEADER.pack(self.kind, self.num_bytes, self.number, self.digest)

    @classmethod
    def read(cls, data: bytes | bytearray) -> "Header":
        header = cls(*_HEADER.unpack(data))
        most = _MOST_BYTES.get(header.kind)
        if most is None:
            raise MalformedMessage("frame", f"one of this protocol, not {header.kind:#x}")
        if header.num_bytes > most:
            raise MalformedMessage("frame length", f"at most {most}, not {header.num_bytes}")
        return header


def failed(number: int, error: KvTransferError) -> bytes:
    """Return the frame that ends a job with an error."""
    body = pack(pack_error(error))
    return Header(FAILED, len(body), number).pack() + body


def done(number: int, digest: int, last: bytes = b"") -> bytes:
    """Return the frame that ends a job, with its last bytes if they were not sent yet."""
    return Header(LAST if last else DONE, len(last), number, digest).pack() + last


def read_failure(body: bytes) -> TransferError:
    """Return what the owner says went wrong."""
    error = read_error(unpack(body, MAX_ERROR_BYTES))
    return error if isinstance(error, TransferError) else TransferError(str(error))


@dataclass(frozen=True, slots=True)
class Request:
    """What a reader wants. The epoch is the owner's, the generation that of its region."""

    number: int
    lease_id: int
    epoch: int
    generation: int
    source: Extents
    verify: bool

    def pack(self) -> bytes:
        head = [_READ, self.number, self.lease_id, self.epoch, self.generation]
        return frames.encode([*head, self.source.pack(), self.verify], MAX_REQUEST_BYTES)


@dataclass(frozen=True, slots=True)
class Cancel:
    number: int

    def pack(self) -> bytes:
        return frames.encode([_CANCEL, self.number], MAX_REQUEST_BYTES)


def read_message(body: bytes) -> Request | Cancel:
    """Read what a reader has sent; MalformedMessage for what is neither."""
    match unpack(body, MAX_REQUEST_BYTES):
        case [1, number, lease_id, epoch, generation, source, verify]:
            return Request(
                whole(number, "number", NUMBER_END),
                whole(lease_id, "lease id", LEASE_ID_END),
                whole(epoch, "epoch", _U64_END),
                whole(generation, "generation", NUMBER_END),
                Extents.read(source),
                exact(verify, "verify", bool),
            )
        case [2, number]:
            return Cancel(whole(number, "number", NUMBER_END))
    raise MalformedMessage("message", "a request, or the end of one")
