"""What both ends of an event stream share: the frames of a message, its limits, and the key.

The frames are vLLM's. A batch is published as [topic, number, payload], the number in 8 bytes,
big-endian. A replay is asked for with [empty, first number] and answered, batch by batch, with
[empty, number, payload], and at the end [empty, -1, empty].

With a key, ZeroMQ's CURVE encrypts and authenticates every connection. The publisher's key pair
follows from the key, and its public half is told to nobody: who does not have the key cannot even
shake hands, on either side.
"""

from collections.abc import Sequence
from hashlib import blake2b

import zmq
from zmq.utils import z85

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.events import MAX_MESSAGE_BYTES

END = (-1).to_bytes(8, "big", signed=True)
MIN_KEY_BYTES = 16
REQUEST_BYTES = 1024  # an address's own handshake fits; what asks for more is cut off
BATCH_BYTES = MAX_MESSAGE_BYTES + REQUEST_BYTES
_NUMBER_BYTES = 8

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


def number_frame(number: int) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big")


def read_number(frame: bytes) -> int:
    if len(frame) != _NUMBER_BYTES:
        raise MalformedMessage("number", f"{_NUMBER_BYTES} bytes")
    return int.from_bytes(frame, "big")


def read_frames(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """Return a batch's number and payload."""
    if len(frames) != 3:
        raise MalformedMessage("message", "3 frames")
    return read_number(frames[1]), frames[2]


def is_end(frames: Sequence[bytes]) -> bool:
    """Tell whether this ends a replay."""
    return len(frames) == 3 and frames[1] == END and not frames[2]


def check_key(key: bytes | None) -> None:
    if key is None:
        return
    if len(key) < MIN_KEY_BYTES:
        raise InvalidValue("key", f"{len(key)} bytes", f"must have at least {MIN_KEY_BYTES}")
    if not zmq.has("curve"):
        raise InvalidValue("key", "(secret)", "needs a libzmq with CURVE; PyPI's pyzmq has it")


def bind(socket: Socket, address: str, key: bytes | None) -> str:
    """Bind the socket and return the address, with the port that it got."""
    if key is not None:
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = _server_pair(key)
    socket.ipv6 = "[" in address
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise InvalidValue("address", address, f"cannot be bound: {error.strerror}") from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def connect(socket: Socket, address: str, key: bytes | None) -> None:
    """Connect when the other side is there, and again whenever it comes back."""
    if key is not None:
        socket.curve_serverkey = _server_pair(key)[0]
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.ipv6 = "[" in address
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise InvalidValue("address", address, f"cannot be connected: {error.strerror}") from None


def _server_pair(key: bytes) -> tuple[bytes, bytes]:
    """Return the publisher's public and secret key."""
    digest = blake2b(key, digest_size=32, person=b"kv event stream").digest()
    secret = z85.encode(digest)
    return zmq.curve_public(secret), secret
