"""Shows the tree of settings: each value with its origin, and the schema of what may be written."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

import yaml
from pydantic import PydanticSchemaGenerationError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from stafette.platform.config import Config, Loaded
from stafette.platform.config_reading import (
    Part,
    PartOf,
    dataclass_in,
    dataclass_in_mapping,
    default_of,
    hints_of,
    mark_of,
)
from stafette.platform.config_sources import Keys

_SECRET = "(secret)"
_DEFAULT = "default"


def show(loaded: Loaded) -> str:
    """Return the effective tree as YAML, each value followed by its origin."""
    lines: list[tuple[str, str]] = []
    shown: Keys = ()
    for keys, value in _values(_with_effective_flags(loaded.config), ()):
        for depth, name in enumerate(keys[:-1]):
            if keys[: depth + 1] != shown[: depth + 1]:
                lines.append(("  " * depth + f"{name}:", ""))
        shown = keys[:-1]
        lines.append(
            ("  " * (len(keys) - 1) + f"{keys[-1]}: {_text(value)}", _origin(loaded, keys))
        )
    width = min(60, max(len(text) for text, _ in lines))
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines)


def schema(kind: type, hidden: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the JSON schema of a config: no other keys, and the defaults."""
    properties = {
        each.name: _with_default(_schema_of(hints_of(kind)[each.name]), default_of(each))
        for each in fields(kind)
        if each.init and each.name not in hidden
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _with_effective_flags(config: Config) -> Config:
    """Show of each pool what its engines get: the common flags, and its own over them."""
    pools = {}
    for name, pool in config.pools.items():
        flags = config.engine_flags(name)
        visible = [f.name for f in fields(flags) if f.name not in pool.engine.hidden]
        given = {each: getattr(flags, each) for each in visible}
        pools[name] = replace(pool, engine=replace(pool.engine, given=given))
    return replace(config, pools=pools)


def _values(config: Any, keys: Keys) -> Iterator[tuple[Keys, object]]:
    """Walk down to plain values, through configs, parts of configs and mappings of configs."""
    if isinstance(config, Part):
        yield from _values_of_part(config, keys)
    elif is_dataclass(config):
        for each in fields(config):
            value = getattr(config, each.name)
            if not each.repr and value:
                value = _SECRET
            yield from _values(value, (*keys, each.name))
    elif isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from _values(value, (*keys, str(name)))
    else:
        yield keys, config


def _values_of_part(part: Part[Any], keys: Keys) -> Iterator[tuple[Keys, object]]:
    for each in fields(part.kind):
        default = default_of(each)
        if each.name not in part.hidden and default is not MISSING:
            value = part.given.get(each.name, default)
            value = _SECRET if not each.repr and value else value
            yield from _values(value, (*keys, each.name))


def _text(value: object) -> str:
    if isinstance(value, tuple | frozenset):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _origin(loaded: Loaded, keys: Keys) -> str:
    if keys == ("cluster", "token") and not loaded.settings.origin(keys):
        return loaded.token_origin
    if own := loaded.settings.origin(keys):
        return own
    match keys:
        case ("pools", _, "engine", "num_threads"):
            return "num_cpus"
        case ("pools", _, "engine", flag):
            return loaded.settings.origin(("engine", flag)) or _DEFAULT
    return _DEFAULT


def _schema_of(hint: Any) -> dict[str, Any]:
    if isinstance(mark := mark_of(hint), PartOf):
        return schema(mark.kind, mark.hidden)
    if (inner := dataclass_in(hint)) is not None:
        own = schema(inner)
        return {"anyOf": [own, {"type": "null"}]} if hint is not inner else own
    if (item := dataclass_in_mapping(hint)) is not None:
        return {"type": "object", "additionalProperties": schema(item)}
    return _plain(hint)


def _plain(hint: Any) -> dict[str, Any]:
    try:
        return TypeAdapter(hint).json_schema()
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema):
        return {}


def _with_default(own: dict[str, Any], default: object) -> dict[str, Any]:
    if default is MISSING or isinstance(default, Part) or is_dataclass(default):
        return own
    if isinstance(default, Mapping | bytes):
        return own
    return own | {"default": list(default) if isinstance(default, tuple) else default}
