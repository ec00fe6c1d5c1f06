"""Errors on their way: the class by name, the arguments by type, and no other class."""

from collections.abc import Callable
from typing import Any

from stafette.kvtransfer import errors
from stafette.kvtransfer.errors import KvTransferError, MalformedMessage, TransferError
from stafette.kvtransfer.strict import each, number, text, whole

_MAX_CHARS = 2_000
_MAX_TEXT_BYTES = 4 * _MAX_CHARS
_MAX_BLOCKS = 4_096
_U64_END = 1 << 64

Reader = Callable[[Any], object]


def _text(value: object) -> str:
    return text(value, "error text", _MAX_TEXT_BYTES)


def _whole(value: object) -> int:
    return whole(value, "error number", _U64_END)


def _seconds(value: object) -> float:
    return number(value, "error seconds")


def _scalar(value: object) -> object:
    if value is not None and type(value) not in (bool, int, float, str, bytes):
        raise MalformedMessage("error value", "one plain value")
    return value


def _blocks(value: object) -> tuple[int, ...]:
    return each(value, "error blocks", _whole)


_ARGUMENTS: dict[type[KvTransferError], tuple[Reader, ...]] = {
    errors.InvalidValue: (_text, _scalar, _text),
    errors.MalformedMessage: (_text, _text),
    errors.PeerLost: (_text, _text),
    errors.TransferTimedOut: (_text, _text, _seconds),
    errors.TransferCancelled: (_text,),
    errors.StaleEpoch: (_text, _whole, _whole),
    errors.LeaseEnded: (_whole, _text),
    errors.StaleBlocks: (_text, _text, _blocks),
    errors.AccessDenied: (_text, _text, _text),
    errors.ChecksumMismatch: (_text, _text),
    errors.AuthFailed: (_text, _text),
    errors.Incompatible: (_text, _text, _text, _text),
    errors.TransportUnavailable: (_text, _text, _text),
    errors.TransferError: (_text,),
}
_BY_NAME = {kind.__name__: (kind, readers) for kind, readers in _ARGUMENTS.items()}


def pack_error(error: KvTransferError) -> list[object]:
    """Return [class, arguments]; what peers could not read travels as a TransferError."""
    packed: list[object] = [type(error).__name__, [_packed(argument) for argument in error.args]]
    try:
        if type(read_error(packed)) is type(error):
            return packed
    except MalformedMessage:
        pass
    return [TransferError.__name__, [_cut(f"{type(error).__name__}: {error}")]]


def read_error(value: object) -> KvTransferError:
    """Return the error that the peer raised; MalformedMessage for what is none."""
    match value:
        case [str(name), [*arguments]] if name in _BY_NAME:
            kind, readers = _BY_NAME[name]
            if len(arguments) != len(readers):
                raise MalformedMessage("error", f"{len(readers)} arguments of {name}")
            return kind(*(read(each) for read, each in zip(readers, arguments, strict=True)))
        case [str(name), [*arguments]]:
            return TransferError(_cut(f"{name}: {arguments}"))
    raise MalformedMessage("error", "[class, arguments]")


def _packed(argument: object) -> object:
    if argument is None or isinstance(argument, bool | int | float):
        return argument
    if isinstance(argument, bytes):
        return argument[:_MAX_CHARS]
    if type(argument) is tuple and all(type(each) is int for each in argument):
        return list(argument[:_MAX_BLOCKS])
    return _cut(argument)


def _cut(value: object) -> str:
    return str(value)[:_MAX_CHARS].encode(errors="replace").decode()
