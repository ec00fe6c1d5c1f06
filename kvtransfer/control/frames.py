"""Frames: a length of four bytes, then one msgpack value of that many."""

import struct

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.strict import pack

_LENGTH = struct.Struct(">I")
HEADER_BYTES = _LENGTH.size


def encode(value: object, max_bytes: int) -> bytes:
    """Return the frame of a value; InvalidValue when no peer could read it."""
    try:
        body = pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidValue("payload", str(error), "must be what msgpack can carry") from None
    if len(body) > max_bytes:
        remedy = f"must be at most {max_bytes} bytes of msgpack"
        raise InvalidValue("payload", f"{len(body)} bytes", remedy)
    return _LENGTH.pack(len(body)) + body


def body_length(header: bytes | bytearray, max_bytes: int) -> int:
    """Read how many bytes follow the header."""
    (length,) = _LENGTH.unpack_from(header)
    if not 0 < length <= max_bytes:
        raise MalformedMessage("frame length", f"1..{max_bytes}, not {length}")
    return int(length)


class FrameReader:
    """Cuts a stream into the bodies of its frames."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a frame has begun, the rest of which has not come yet."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take in what was received; return the bodies that are complete."""
        if not self._buffer and len(data) > HEADER_BYTES:
            if HEADER_BYTES + body_length(data, self._max_bytes) == len(data):
                return [data[HEADER_BYTES:]]  # one frame, whole: the usual case
        self._buffer += data
        bodies = []
        while (body := self._next()) is not None:
            bodies.append(body)
        return bodies

    def _next(self) -> bytes | None:
        if len(self._buffer) < HEADER_BYTES:
            return None
        end = HEADER_BYTES + body_length(self._buffer, self._max_bytes)
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[HEADER_BYTES:end])
        del self._buffer[:end]
        return body
