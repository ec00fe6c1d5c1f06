"""Msgpack, read without trust: every value has the type and the range that we expect."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]

from stafette.kvtransfer.errors import MalformedMessage

Value = TypeVar("Value")


def pack(value: object) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def unpack(data: bytes, max_bytes: int) -> object:
    """Return the one msgpack value in `data`."""
    if len(data) > max_bytes:
        raise MalformedMessage("message", f"at most {max_bytes} bytes, not {len(data)}")
    try:
        return msgpack.unpackb(data)
    # msgpack's own errors are ValueErrors; memory runs out for lists longer than the message.
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MalformedMessage("message", f"msgpack ({type(error).__name__})") from None


def exact(value: object, where: str, kind: type[Value]) -> Value:
    """Return the value, which is of this very type: True is no int."""
    if type(value) is not kind:
        raise MalformedMessage(where, kind.__name__)
    return value


def whole(value: object, where: str, end: int) -> int:
    """Return an int in 0..end - 1."""
    if type(value) is not int or not 0 <= value < end:
        raise MalformedMessage(where, f"a whole number below {end}")
    return value


def number(value: object, where: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise MalformedMessage(where, "a finite number")
    return float(value)  # type: ignore[arg-type]


def text(value: object, where: str, max_bytes: int) -> str:
    shown = exact(value, where, str)
    if len(shown.encode()) > max_bytes:
        raise MalformedMessage(where, f"at most {max_bytes} bytes")
    return shown


def octets(value: object, where: str, max_bytes: int) -> bytes:
    """Return 1..max_bytes bytes."""
    if type(value) is not bytes or not 0 < len(value) <= max_bytes:
        raise MalformedMessage(where, f"1..{max_bytes} bytes")
    return value


def each(value: object, where: str, read: Callable[[Any], Value]) -> tuple[Value, ...]:
    """Return what `read` makes of every item of a list."""
    return tuple(map(read, exact(value, where, list)))
