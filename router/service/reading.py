"""Makes frozen dataclasses of plain values, from a file or a request, without trust.

Every value has the type that its field declares, or the error names the field: True is no number,
an unknown name is an error that tells the nearest known one.
"""

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast

from stafette.router.errors import InvalidValue

_MAX_TEXT_BYTES = 512

Kind = TypeVar("Kind")
_Read = Callable[[Any, str], Any]  # of a value, and what it is called


class _Field(NamedTuple):
    read: _Read
    required: bool


def read_as(kind: type[Kind], value: object, where: str = "") -> Kind:
    """Return the value as an instance of this dataclass."""
    if not isinstance(value, Mapping):
        raise InvalidValue(where or "body", value, "must be an object: names with their values")
    known = _fields(cast(Any, kind))
    found = {}
    for name, given in value.items():
        field = known.get(name)
        if field is None:
            raise _unknown(where, name, given, known)
        found[name] = field.read(given, f"{where}.{name}" if where else name)
    for name, field in known.items():
        if field.required and name not in found:
            raise InvalidValue(f"{where}.{name}" if where else name, None, "is required")
    return kind(**found)


@cache
def _fields(kind: Any) -> dict[str, _Field]:
    assert is_dataclass(kind), kind
    hints = typing.get_type_hints(kind)
    return {
        each.name: _Field(
            _reader(hints[each.name]),
            each.default is MISSING and each.default_factory is MISSING,
        )
        for each in fields(kind)
    }


def _unknown(where: str, name: object, given: object, known: Mapping[str, object]) -> InvalidValue:
    near = get_close_matches(str(name), known, n=1)
    remedy = f"is not known; did you mean {near[0]}? " if near else "is not known; "
    known_names = ", ".join(sorted(known))
    return InvalidValue(
        f"{where}.{name}" if where else str(name), given, f"{remedy}known: {known_names}"
    )


def _reader(hint: Any) -> _Read:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is object:
        return lambda value, where: value
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda value, where: read_as(cast(type, hint), value, where)
    if origin in (typing.Union, types.UnionType):
        (only,) = (arm for arm in arguments if arm is not types.NoneType)
        return _optional(_reader(only))
    if origin is typing.Literal:
        return _choice(arguments)
    if origin in (tuple, frozenset):
        return _several(origin, _reader(arguments[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(_reader(arguments[1]))
    return _PLAIN[hint]


def _optional(read: _Read) -> _Read:
    return lambda value, where: None if value is None else read(value, where)


def _choice(allowed: tuple[object, ...]) -> _Read:
    def read(value: object, where: str) -> object:
        if not isinstance(value, str) or value not in allowed:
            raise InvalidValue(where, value, f"must be one of {', '.join(map(str, allowed))}")
        return value

    return read


def _several(kind: type, read_one: _Read) -> _Read:
    def read(value: object, where: str) -> object:
        if not isinstance(value, list | tuple):
            raise InvalidValue(where, value, "must be a list")
        return kind(read_one(one, f"{where}[{place}]") for place, one in enumerate(value))

    return read


def _mapping(read_one: _Read) -> _Read:
    def read(value: object, where: str) -> object:
        if not isinstance(value, Mapping):
            raise InvalidValue(where, value, "must be an object: names with their values")
        return {
            _text(name, f"a name in {where}"): read_one(one, f"{where}.{name}")
            for name, one in value.items()
        }

    return read


def _bool(value: object, where: str) -> bool:
    if type(value) is not bool:
        raise InvalidValue(where, value, "must be true or false")
    return value


def _whole(value: object, where: str) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
        raise InvalidValue(where, value, "must be a whole number")
    return value


def _number(value: object, where: str) -> float:
    if type(value) is not float:
        value = _whole(value, where)
    elif not math.isfinite(value):
        raise InvalidValue(where, value, "must be a finite number")
    return float(value)


def _text(value: object, where: str) -> str:
    if type(value) is str and len(value) <= _MAX_TEXT_BYTES:
        try:
            if len(value.encode()) <= _MAX_TEXT_BYTES:
                return value
        except UnicodeEncodeError:  # half of a pair of surrogates, which JSON lets through
            pass
    raise InvalidValue(where, value, f"must be a text of at most {_MAX_TEXT_BYTES} bytes")


def _octets(value: object, where: str) -> bytes:
    """JSON has no bytes: there they are written in hex."""
    if type(value) is bytes:
        return value
    try:
        return bytes.fromhex(_text(value, where))
    except ValueError:
        raise InvalidValue(where, value, "must be bytes, in JSON as hex digits") from None


_PLAIN: dict[Any, _Read] = {
    bool: _bool,
    int: _whole,
    float: _number,
    str: _text,
    bytes: _octets,
}
