"""Wakes readers in rounds: while they keep the loop busy, more comes together for the next."""

import asyncio
import time

_BUSY_S = 0.001  # a round that takes longer is followed by a pause as long as itself
_MOST_S = 0.01  # of such a pause
_TURNS = 3  # of the loop, in which woken readers read, answer, and their answers are sent


class Deliveries:
    """All of one event loop's inboxes that are filled by one source share one of these.

    A reader costs the same for one token as for twenty. So whoever falls behind must be woken less
    often; whoever does not is woken at once.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()  # which asks the system for our process each time
        self._held: list[asyncio.Future[None]] = []  # readers for whom there is something
        self._is_on = False  # a round, or the pause behind it
        self._is_open = False  # the round's first turn: what comes together is read together
        self._began = 0.0

    def reader(self) -> asyncio.Future[None]:
        """Return what a reader waits on."""
        return self._loop.create_future()

    def wake(self, reader: asyncio.Future[None]) -> None:
        """Let a reader know that there is something to read, at the latest after a pause."""
        if self._is_on and not self._is_open:
            self._held.append(reader)
            return
        if not self._is_on:
            self._begin()
        _wake(reader)

    def _begin(self) -> None:
        self._is_on, self._is_open, self._began = True, True, time.monotonic()
        self._loop.call_soon(self._wait, _TURNS)

    def _wait(self, turns: int) -> None:
        """Stand behind those who were woken, until they have had their turns."""
        self._is_open = False
        if turns:
            self._loop.call_soon(self._wait, turns - 1)
            return
        took_s = time.monotonic() - self._began
        if took_s > _BUSY_S:
            self._loop.call_later(min(took_s, _MOST_S), self._end)
        else:
            self._end()

    def _end(self) -> None:
        self._is_on = False
        if self._held:
            held, self._held = self._held, []
            self._begin()
            for reader in held:
                _wake(reader)


def _wake(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)
