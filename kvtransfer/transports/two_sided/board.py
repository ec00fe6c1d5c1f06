"""A board on which the two ends of a pipe tell each other how to connect.

torch.distributed meets in a store, usually a server that listens on every interface and believes
everybody. Ours is the visit's own connection, which both have authenticated: what one side sets
travels to the other as a message.
"""

import time
from collections.abc import Sequence

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import octets, text
from stafette.kvtransfer.transports.visits.talk import Talk

PUT = "put"
_MAX_KEYS = 64
_MAX_KEY_BYTES = 256
_MAX_VALUE_BYTES = 64 << 10


class Board:
    """One side's view, until the deadline. Used by the thread that has the talk."""

    def __init__(self, talk: Talk, deadline: float) -> None:
        self._talk = talk
        self._deadline = deadline
        self._known: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        self._known[key] = value
        self._talk.say(PUT, key, value)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._known[key]

    def has(self, keys: Sequence[str]) -> bool:
        return all(key in self._known for key in keys)

    def wait(self, keys: Sequence[str]) -> None:
        """Return when all of them are known; TimeoutError when they did not come in time."""
        while not self.has(keys):
            self._take(self._talk.hear(self._deadline))

    def left_s(self) -> float:
        return max(1e-3, self._deadline - time.monotonic())

    def __len__(self) -> int:
        return len(self._known)

    def _take(self, message: list[object]) -> None:
        match message:
            case ["put", key, value] if len(self._known) < _MAX_KEYS:
                name = text(key, "key", _MAX_KEY_BYTES)
                self._known[name] = octets(value, "value", _MAX_VALUE_BYTES)
            case _:
                raise MalformedMessage("message", f"[{PUT}, key, value]")
