"""Errors on their way: the class by name, the arguments by type, and no other class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsInt, cast

from stafette.kvtransfer import errors
from stafette.kvtransfer.errors import KvTransferError, MalformedMessage, TransferError
from stafette.kvtransfer.strict import each, number, text, whole

_MAX_CHARS = 2_000
_MAX_TEXT_BYTES = 4 * _MAX_CHARS
_MAX_BLOCKS = 4_096
_U64_END = 1 << 64


@dataclass(frozen=True, slots=True)
class _Field:
    """How one argument of an error is written, and read."""

    pack: Callable[[object], object]
    read: Callable[[Any], object]


def _cut(value: object) -> str:
    return str(value)[:_MAX_CHARS].encode(errors="replace").decode()


def _pack_scalar(value: object) -> object:
    """Return a plain value as it is, any other one as people see it."""
    if isinstance(value, bytes):
        return value[:_MAX_CHARS]
    if type(value) is int and not -(1 << 63) <= value < _U64_END:
        return _cut(value)
    return value if value is None or type(value) in (bool, int, float) else _cut(value)


def _read_scalar(value: object) -> object:
    if value is not None and type(value) not in (bool, int, float, str, bytes):
        raise MalformedMessage("error value", "one plain value")
    return value


def _pack_whole(value: object) -> int:
    return int(cast(SupportsInt, value))  # numpy's numbers too


def _read_whole(value: object) -> int:
    return whole(value, "error number", _U64_END)


def _pack_blocks(value: object) -> list[int]:
    """Return the first of them: the message must have room for them."""
    return [int(block) for block in cast(tuple[int, ...], value)[:_MAX_BLOCKS]]


_TEXT = _Field(_cut, lambda value: text(value, "error text", _MAX_TEXT_BYTES))
_SCALAR = _Field(_pack_scalar, _read_scalar)
_WHOLE = _Field(_pack_whole, _read_whole)
_SECONDS = _Field(lambda value: float(cast(Any, value)), lambda value: number(value, "seconds"))
_BLOCKS = _Field(_pack_blocks, lambda value: each(value, "error blocks", _read_whole))

_ARGUMENTS: dict[type[KvTransferError], tuple[_Field, ...]] = {
    errors.InvalidValue: (_TEXT, _SCALAR, _TEXT),
    errors.MalformedMessage: (_TEXT, _TEXT),
    errors.PeerLost: (_TEXT, _TEXT),
    errors.TransferTimedOut: (_TEXT, _TEXT, _SECONDS),
    errors.TransferCancelled: (_TEXT,),
    errors.StaleEpoch: (_TEXT, _WHOLE, _WHOLE),
    errors.LeaseEnded: (_WHOLE, _TEXT),
    errors.StaleBlocks: (_TEXT, _TEXT, _BLOCKS),
    errors.AccessDenied: (_TEXT, _TEXT, _TEXT),
    errors.ChecksumMismatch: (_TEXT, _TEXT),
    errors.AuthFailed: (_TEXT, _TEXT),
    errors.Incompatible: (_TEXT, _TEXT, _TEXT, _TEXT),
    errors.TransportUnavailable: (_TEXT, _TEXT, _TEXT),
    errors.TransferError: (_TEXT,),
}
_BY_NAME = {kind.__name__: (kind, fields) for kind, fields in _ARGUMENTS.items()}


def pack_error(error: KvTransferError) -> list[object]:
    """Return [class, arguments]; what peers could not read travels as a TransferError."""
    fields = _ARGUMENTS.get(type(error), ())
    if fields and len(fields) == len(error.args):
        try:
            arguments = [f.pack(arg) for f, arg in zip(fields, error.args, strict=True)]
            read_error([type(error).__name__, arguments])
            return [type(error).__name__, arguments]
        except (MalformedMessage, TypeError, ValueError, OverflowError):
            pass
    return [TransferError.__name__, [_cut(f"{type(error).__name__}: {error}")]]


def read_error(value: object) -> KvTransferError:
    """Return the error that the peer raised; MalformedMessage for what is none."""
    match value:
        case [str(name), [*arguments]] if name in _BY_NAME:
            kind, fields = _BY_NAME[name]
            if len(arguments) != len(fields):
                raise MalformedMessage("error", f"{len(fields)} arguments of {name}")
            return kind(*(f.read(arg) for f, arg in zip(fields, arguments, strict=True)))
        case [str(name), [*arguments]]:  # of a newer peer
            return TransferError(_cut(f"{_cut(name)}: {arguments}"))
    raise MalformedMessage("error", "[class, arguments]")
