"""A socket between two ranks: msgpack values, each after its length, with a deadline."""

import socket
import struct
import time
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from stafette.workers.runner.runner import StepInputs

_LENGTH = struct.Struct("<Q")
_MAX_BYTES = 1 << 30  # far above any step; a larger length is not one of ours
_ARRAYS = ("token_ids", "positions", "query_starts", "context_lens", "logit_rows", "hidden_rows")


class Link:
    """EOFError when the other side is gone or takes nothing, TimeoutError when it is too slow.

    A deadline is the socket's: only without one may two threads send and receive at once.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: dict[str, Any], timeout_s: float | None = None) -> None:
        body = msgpack.packb(message)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            raise EOFError(str(error)) from error

    def receive(
        self, timeout_s: float | None = None, max_bytes: int = _MAX_BYTES
    ) -> dict[str, Any]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, deadline))
        if length > max_bytes:
            raise EOFError(f"a message of {length} bytes")
        message: dict[str, Any] = msgpack.unpackb(self._take(length, deadline))
        return message

    def close(self) -> None:
        self._socket.close()

    def _take(self, length: int, deadline: float | None) -> bytes:
        pieces = bytearray()
        while len(pieces) < length:
            left = None if deadline is None else max(0.001, deadline - time.monotonic())
            self._socket.settimeout(left)
            try:
                piece = self._socket.recv(min(length - len(pieces), 1 << 20))
            except ConnectionError as error:
                raise EOFError(str(error)) from error
            if not piece:
                raise EOFError("the other side is gone")
            pieces += piece
        return bytes(pieces)


def pack_inputs(inputs: StepInputs) -> dict[str, Any]:
    """Return a step as plain values; its arrays are int32, so bytes say all but a table's width."""
    packed: dict[str, Any] = {name: getattr(inputs, name).tobytes() for name in _ARRAYS}
    packed["block_tables"] = inputs.block_tables.tobytes()
    packed["lora_slots"] = None if inputs.lora_slots is None else inputs.lora_slots.tobytes()
    packed["sequences"] = inputs.sequences
    return packed


def unpack_inputs(packed: dict[str, Any]) -> StepInputs:
    arrays = {name: np.frombuffer(packed[name], np.int32).copy() for name in _ARRAYS}
    num_seqs = len(arrays["context_lens"])
    tables = np.frombuffer(packed["block_tables"], np.int32).reshape(num_seqs, -1).copy()
    slots = packed["lora_slots"]
    return StepInputs(
        **arrays,
        block_tables=tables,
        lora_slots=None if slots is None else np.frombuffer(slots, np.int32),
        sequences=None if packed["sequences"] is None else tuple(packed["sequences"]),
    )
