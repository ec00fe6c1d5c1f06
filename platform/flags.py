"""Command-line flags made from a config dataclass: `max_num_seqs` is `--max-num-seqs`."""

import argparse
import dataclasses
import types
import typing
from typing import Any


def add_flags(parser: argparse.ArgumentParser, config: type, title: str) -> None:
    """Add one flag for each field; a flag that is not given leaves the field's default."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name = "--" + field.name.replace("_", "-")
        options = _options(hints[field.name])
        shown = f"(default: {field.default})"
        group.add_argument(name, default=argparse.SUPPRESS, help=shown, **options)


def given(arguments: argparse.Namespace, config: type) -> dict[str, Any]:
    """Return the fields of `config` that the user set."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def _options(hint: Any) -> dict[str, Any]:
    if typing.get_origin(hint) is tuple:  # of texts: given one behind the other
        return {"nargs": "+", "metavar": "TEXT"}
    arms = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": arms}
    plain = arms[0] if arms else hint
    if plain is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": plain, "metavar": plain.__name__.upper()}
