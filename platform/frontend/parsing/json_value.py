"""Finds where a JSON value ends, character by character."""

import json
from enum import Enum, auto
from typing import Any

BLANK = " \t\r\n"
_PLAIN = frozenset(BLANK + ",:+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Verdict(Enum):
    MORE = auto()
    LAST = auto()  # the value ends with this character
    OVER = auto()  # it ended before this character
    BAD = auto()  # no JSON has this character here


class ValueEnd:
    """Knows strings and brackets; whether what is between them is right is for the reader to say.

    A character that JSON has outside strings nowhere, such as `<`, is bad all the same: markup that
    interrupts a value is told from the value.
    """

    def __init__(self) -> None:
        self.in_string = False
        self._depth = 0
        self._escaped = False

    def take(self, char: str) -> Verdict:
        if self.in_string:
            return self._in_string(char)
        if char == '"':
            self.in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            return self._close()
        elif self._depth == 0 and (char == "," or char in BLANK):
            return Verdict.OVER
        elif char not in _PLAIN:
            return Verdict.BAD
        return Verdict.MORE

    def _in_string(self, char: str) -> Verdict:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self.in_string = False
            return Verdict.MORE if self._depth else Verdict.LAST
        return Verdict.MORE

    def _close(self) -> Verdict:
        if self._depth == 0:
            return Verdict.OVER
        self._depth -= 1
        return Verdict.MORE if self._depth else Verdict.LAST


def parsed(text: str) -> Any:
    """Return what the text stands for; ValueError when it is not JSON. Line breaks may be bare."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def escaped(char: str) -> str:
    """Return a string's character as JSON wants it: models write line breaks as they are."""
    return char if char >= " " else json.dumps(char)[1:-1]


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")
