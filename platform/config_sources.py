"""Where settings come from: a YAML file, the environment, the command line.

Each gives plain data and the origin of every value, which errors and `stafette config show` name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stafette.platform.frontend.errors import InvalidSetting

Keys = tuple[str, ...]  # the way to a value: ("pools", "decode", "replicas")

PREFIX = "STAFETTE__"  # STAFETTE__POOLS__DECODE__REPLICAS=2


@dataclass(slots=True)
class Settings:
    """Nested mappings of what was given, and where each value was."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, str] = field(default_factory=dict)

    def put(self, keys: Keys, value: object, origin: str) -> None:
        """Take a value; one that stands there already makes room."""
        inner = self.values
        for depth, key in enumerate(keys[:-1], start=1):
            if not isinstance(inner.setdefault(key, {}), dict):
                remedy = f"holds one value, so that {'.'.join(keys)} cannot be set ({origin})"
                raise InvalidSetting(".".join(keys[:depth]), inner[key], remedy)
            inner = inner[key]
        inner[keys[-1]] = value
        for old in [path for path in self.origins if path[: len(keys)] == keys]:
            del self.origins[old]
        self.origins[keys] = origin

    def origin(self, keys: Keys) -> str:
        """Return where a value came from, or what it stands in; "": it is a default."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.origins:
                return self.origins[keys[:length]]
        return ""


def from_file(path: Path) -> Settings:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidSetting("config", str(path), f"cannot be read: {reason}") from None
    return from_yaml(text, path.name)


def from_yaml(text: str, name: str) -> Settings:
    """Read YAML's safe types; InvalidSetting names the line of what is wrong."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or "it is no YAML"
        raise InvalidSetting("config", where, f"cannot be read: {problem}") from None
    settings = Settings()
    if node is None:
        return settings
    if not isinstance(node, yaml.MappingNode):
        raise InvalidSetting("config", name, "must be a mapping of settings, such as model: ...")
    for keys, value, line in _leaves(node, (), name):
        settings.put(keys, value, f"{name}:{line}")
    return settings


def from_mapping(values: Mapping[str, Any], origin: str) -> Settings:
    """Take what came as data already, such as the arguments of a Serve application."""
    settings = Settings()

    def walk(inner: Mapping[str, Any], keys: Keys) -> None:
        for key, value in inner.items():
            if isinstance(value, Mapping) and value:
                walk(value, (*keys, str(key)))
            else:
                settings.put((*keys, str(key)), value, origin)

    walk(values, ())
    return settings


def overlay_environment(settings: Settings, environment: Mapping[str, str]) -> None:
    for name in sorted(environment):
        if name.startswith(PREFIX):
            keys = tuple(name.removeprefix(PREFIX).lower().split("__"))
            settings.put(keys, _scalar(environment[name], name), name)


def overlay_assignments(settings: Settings, assignments: list[str]) -> None:
    """Take `pools.decode.replicas=2`, as it is given to --set."""
    for each in assignments:
        name, equals, value = each.partition("=")
        keys = tuple(name.split("."))
        if not equals or not all(keys):
            raise InvalidSetting("--set", each, "must be NAME.NAME=VALUE")
        settings.put(keys, _scalar(value, "--set"), f"--set {name}")


def _scalar(text: str, origin: str) -> object:
    """Read a value as YAML would: 2 is a number, [a, b] a list."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidSetting(origin, text, "must be a value as in YAML") from None


def _leaves(node: yaml.MappingNode, keys: Keys, name: str) -> Iterator[tuple[Keys, object, int]]:
    seen: set[str] = set()
    loader = yaml.SafeLoader("")
    loader.flatten_mapping(node)  # resolves <<
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        line = key_node.start_mark.line + 1
        if key in seen:
            remedy = f"stands there twice, again in {name}:{line}"
            raise InvalidSetting(".".join((*keys, key)), "...", remedy)
        seen.add(key)
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            yield from _leaves(value_node, (*keys, key), name)
        else:
            yield (*keys, key), loader.construct_object(value_node, deep=True), line
