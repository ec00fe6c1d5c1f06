"""Reads one call written as a JSON object, character by character, before it has ended.

{"name": "add", "arguments": {"a": 1, "b": 2}}
"""

from collections.abc import Callable, Container
from typing import Any

from stafette.platform.frontend.parsing.json_value import (
    BLANK,
    ValueEnd,
    Verdict,
    escaped,
    parsed,
)

_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "id", "type", *_ARGUMENTS)
_UNKNOWN = object()


class JsonCall:
    """Knows the name and the arguments as soon as they are said.

    `begun` is true from the moment on from which it can only be a call; `broken` when it is none,
    or ends in the middle. With `names` it is a call only if it has one of them and arguments, and
    nothing that calls do not have.
    """

    def __init__(self, names: Container[str] | None = None) -> None:
        self.name = ""
        self.call_id: str | None = None
        self.begun = self.done = self.broken = False
        self.raw = ""  # all that was taken, while it may still turn out to be no call
        self._names = names
        self._arguments: list[str] = []  # not handed out yet
        self._said_arguments = False
        self._step: Callable[[str], bool] = self._before
        self._key = self._value = ""
        self._end = ValueEnd()
        self._live = False  # this value's characters are the arguments

    def feed(self, text: str) -> int:
        """Read up to the object's end, or the first character that cannot be; return how many."""
        taken = 0
        for char in text:
            if not self._step(char):
                self.broken = True
                break
            taken += 1
            if self.done:
                break
        if not self.begun:
            self.raw += text[:taken]
            self.begun = self._is_certain
        return taken

    def new_arguments(self) -> str:
        """Return the arguments that were read since the last time."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    @property
    def _is_certain(self) -> bool:
        return bool(self.name) and self._said_arguments

    # One method for each place in the object. It returns whether the character may be there.

    def _before(self, char: str) -> bool:
        if char == "{":
            self._step = self._first_key
        return char == "{" or char in BLANK

    def _first_key(self, char: str) -> bool:
        return self._close() if char == "}" else self._next_key(char)

    def _next_key(self, char: str) -> bool:
        if char == '"':
            self._begin(self._in_key)
            return self._in_key(char)
        return char in BLANK

    def _in_key(self, char: str) -> bool:
        self._value += char
        if self._end.take(char) is not Verdict.LAST:
            return True
        self._key, self._step = str(_parsed(self._value)), self._colon
        return self._names is None or self._is_certain or self._key in _KEYS

    def _colon(self, char: str) -> bool:
        if char == ":":
            self._step = self._value_start
        return char == ":" or char in BLANK

    def _value_start(self, char: str) -> bool:
        if char in BLANK:
            return True
        self._begin(self._in_value)
        self._live = self._key in _ARGUMENTS and not self._said_arguments and char in "{["
        self._said_arguments |= self._live
        return self._in_value(char)

    def _in_value(self, char: str) -> bool:
        in_string = self._end.in_string
        verdict = self._end.take(char)
        if verdict is Verdict.OVER:
            return self._value_is_whole() and self._after_value(char)
        if verdict is Verdict.BAD:
            return False
        if self._live:
            self._arguments.append(escaped(char) if in_string else char)
        else:
            self._value += char
        return self._value_is_whole() if verdict is Verdict.LAST else True

    def _after_value(self, char: str) -> bool:
        if char == "}":
            return self._close()
        if char == ",":
            self._step = self._next_key
        return char == "," or char in BLANK

    def _begin(self, step: Callable[[str], bool]) -> None:
        self._step, self._value, self._end = step, "", ValueEnd()

    def _value_is_whole(self) -> bool:
        """Take in a value that was read to its end; False when this can be no call."""
        self._step = self._after_value
        if self._live:
            self._live = False
            return True
        value = _parsed(self._value)
        if self._key == "name" and not self.name:
            return self._take_name(value)
        if self._key == "id" and isinstance(value, str) and not self._is_certain:
            self.call_id = value
        if self._key in _ARGUMENTS and not self._said_arguments:
            return self._take_arguments(value)
        return value is not _UNKNOWN

    def _take_name(self, value: object) -> bool:
        if not isinstance(value, str) or not value:
            return False
        self.name = value
        return self._names is None or value in self._names

    def _take_arguments(self, value: object) -> bool:
        """Some models write the arguments as a string that holds JSON, or null for none."""
        self._said_arguments = True
        if isinstance(value, str):
            self._arguments.append(value)
        elif value is None:
            self._arguments.append("{}")
        return isinstance(value, str | None)

    def _close(self) -> bool:
        if not self.name or (self._names is not None and not self._said_arguments):
            return False
        if not self._said_arguments:
            self._arguments.append("{}")
            self._said_arguments = True
        self.done = True
        return True


def _parsed(text: str) -> Any:
    try:
        return parsed(text)
    except ValueError:
        return _UNKNOWN
