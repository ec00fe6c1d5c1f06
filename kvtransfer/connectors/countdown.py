"""A call that is due when several others have been made."""

import threading
from collections.abc import Callable


class Countdown:
    """Calls once, after `count` calls of `done`: from whichever thread makes the last of them."""

    def __init__(self, count: int, call: Callable[[], None]) -> None:
        assert count > 0, "nothing to wait for: call it yourself"
        self._left = count
        self._call = call
        self._lock = threading.Lock()

    def done(self) -> None:
        with self._lock:
            self._left -= 1
            assert self._left >= 0, "each is done once"
            last = not self._left
        if last:
            self._call()


class Once:
    """A callable that passes on its first call only."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            call, self._call = self._call, None
        if call is not None:
            call()
