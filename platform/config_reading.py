"""Makes config dataclasses of plain data: strictly, so that no setting is silently ignored."""

import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from stafette.kvtransfer.errors import InvalidValue as InvalidTransferValue
from stafette.platform.config_sources import Keys, Settings
from stafette.platform.frontend.errors import InvalidSetting
from stafette.router.errors import InvalidValue as InvalidRouterValue
from stafette.workers.errors import ConfigError

T = TypeVar("T")
Wrong = (ConfigError, InvalidTransferValue, InvalidRouterValue)


@dataclass(frozen=True)
class Part(Generic[T]):
    """Some fields of a config; the others are known only where it is made."""

    kind: type[T]
    hidden: frozenset[str] = field(repr=False)  # fields that are not set by the user
    given: Mapping[str, object] = field(default_factory=dict)

    def make(self, **rest: Any) -> T:
        return self.kind(**{**self.given, **rest})


@dataclass(frozen=True)
class PartOf:
    """Marks a field as a `Part`: Annotated[Part[AgentConfig], PartOf(AgentConfig, "name", ...)]."""

    kind: type
    hidden: frozenset[str]

    def __init__(self, kind: type, *hidden: str) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "hidden", frozenset(hidden))

    def empty(self) -> Part[Any]:
        return Part(self.kind, self.hidden)


class Reader:
    """Reads one tree of settings; each error names the field, its value, the remedy and origin."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def read(self, kind: type[T]) -> T:
        return self._dataclass(kind, self._settings.values, ())

    def _dataclass(self, kind: type[T], data: object, keys: Keys) -> T:
        values = self._fields(kind, data, keys, ())
        for each in fields(kind):  # type: ignore[arg-type]
            if each.name not in values and default_of(each) is MISSING:
                raise self._wrong((*keys, each.name), None, "must be given")
        try:
            return kind(**values)
        except Wrong as error:
            raise self._wrong_at(keys, error) from None

    def _fields(
        self, kind: type, data: object, keys: Keys, hidden: Collection[str]
    ) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            raise self._wrong(keys, data, "must be a mapping of settings")
        hints = hints_of(kind)
        known = [name for name in hints if name not in hidden]
        for name in data:
            if name not in known:
                raise self._unknown((*keys, str(name)), data[name], known)
        return {name: self._value(hints[name], data[name], (*keys, name)) for name in data}

    def _value(self, hint: Any, data: object, keys: Keys) -> object:
        if isinstance(marked := mark_of(hint), PartOf):
            return self._part(marked, data, keys)
        if data is None and NoneType in get_args(hint):
            return None
        inner = dataclass_in(hint)
        if inner is not None:
            return self._dataclass(inner, data, keys)
        if (item := dataclass_in_mapping(hint)) is not None:
            if not isinstance(data, Mapping):
                raise self._wrong(keys, data, "must be a mapping of names to settings")
            return {n: self._dataclass(item, each, (*keys, n)) for n, each in data.items()}
        return self._plain(hint, data, keys)

    def _part(self, mark: PartOf, data: object, keys: Keys) -> Part[Any]:
        given = self._fields(mark.kind, data, keys, mark.hidden)
        return Part(mark.kind, mark.hidden, given)

    def _plain(self, hint: Any, data: object, keys: Keys) -> object:
        """Let pydantic check it, by the strict rules of JSON: there are lists, but no tuples."""
        if isinstance(data, bool) and {"on", "off"} <= set(get_args(hint)):
            data = "on" if data else "off"  # YAML takes these words for true and false
        try:
            return _adapter(hint).validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            inside = "".join(f".{part}" for part in first["loc"] if isinstance(part, str))
            name, message = ".".join(keys) + inside, first["msg"]
            raise self._wrong(keys, data, _remedy(message), name) from None
        except TypeError:  # YAML has dates
            remedy = "must be text, a number, true, false, a list or a mapping; quote it"
            raise self._wrong(keys, str(data), remedy) from None

    def _unknown(self, keys: Keys, value: object, known: list[str]) -> InvalidSetting:
        nearest = get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
        return self._wrong(keys, value, f"does not exist; {remedy}")

    def _wrong_at(self, keys: Keys, error: Any) -> InvalidSetting:
        """Give an error of a lower floor the place in this tree."""
        last = str(error.field).rpartition(".")[2]
        where = (*keys, last) if keys else tuple(str(error.field).split("."))
        return self._wrong(where, error.value, error.remedy)

    def _wrong(
        self, keys: Keys, value: object, remedy: str, name: str | None = None
    ) -> InvalidSetting:
        origin = self._settings.origin(keys)
        there = f" ({origin})" if origin else ""
        return InvalidSetting(name or ".".join(keys), value, f"{remedy}{there}")


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the fields that can be set, with their types and marks."""
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name] for each in fields(kind) if each.init}


def default_of(each: Any) -> object:
    """Return a field's default, or MISSING."""
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default


def mark_of(hint: Any) -> object:
    return next(iter(getattr(hint, "__metadata__", ())), None)


def dataclass_in(hint: Any) -> type | None:
    """Return the dataclass that a type is, or is when it is not None."""
    if get_origin(hint) in (Union, UnionType):
        hint = next((arm for arm in get_args(hint) if arm is not NoneType), hint)
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def dataclass_in_mapping(hint: Any) -> type | None:
    origin = get_origin(hint)
    if not isinstance(origin, type) or not issubclass(origin, Mapping):
        return None
    return dataclass_in(get_args(hint)[1])


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _remedy(message: str) -> str:
    return message.replace("Input should be", "must be").removeprefix("Value error, ")
