"""Keeps the leases that this process holds alive: one call an owner and beat, in the background."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

from stafette.kvtransfer.errors import KvTransferError, MalformedMessage
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.leases.lease import Lease
from stafette.kvtransfer.leases.service import RENEW
from stafette.kvtransfer.strict import each, number

_UNANSWERED = "no heartbeat reached its owner in time"


class Ask(Protocol):
    """How heartbeats reach an owner."""

    def __call__(self, owner: str, operation: str, payload: object) -> object: ...


class Heartbeats:
    """`executor` runs the calls: an owner that does not answer keeps no other waiting."""

    def __init__(
        self, config: LeaseConfig, ask: Ask, executor: Executor, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._ask = ask
        self._executor = executor
        self._clock = clock
        self._beats: dict[Lease, float] = {}  # when the next one is due
        self._asked: set[str] = set()  # owners whose answer is awaited
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lease-heartbeats", daemon=True)
        self._thread.start()

    def add(self, lease: Lease) -> None:
        with self._changed:
            self._beats[lease] = self._clock() + self._pause_s(lease)
            self._changed.notify()

    def remove(self, lease: Lease) -> None:
        with self._changed:
            self._beats.pop(lease, None)

    def drop_owner(self, owner: str, reason: str) -> None:
        """End what an owner, who is gone, had granted."""
        with self._changed:
            gone = [lease for lease in self._beats if lease.owner == owner]
            for lease in gone:
                del self._beats[lease]
        for lease in gone:
            lease.end(reason)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                for owner, leases in self._due().items():
                    self._asked.add(owner)
                    self._executor.submit(self._renew, owner, leases)
                self._changed.wait(self._rest_s())

    def _due(self) -> dict[str, list[Lease]]:
        now, due = self._clock(), dict[str, list[Lease]]()
        for lease, when in self._beats.items():
            if when <= now and lease.owner not in self._asked:
                due.setdefault(lease.owner, []).append(lease)
        return due

    def _rest_s(self) -> float | None:
        waiting = [when for lease, when in self._beats.items() if lease.owner not in self._asked]
        return max(0.0, min(waiting) - self._clock()) if waiting else None

    def _renew(self, owner: str, leases: Sequence[Lease]) -> None:
        asked_at, left = self._clock(), list[float | None]()
        try:
            answer = self._ask(owner, RENEW, [lease.id for lease in leases])
            left = [*each(answer, "remaining times", _seconds)]
            if len(left) != len(leases):
                raise MalformedMessage("remaining times", f"{len(leases)} of them")
        except KvTransferError:  # the next beat asks again, as long as there is time
            left = [None] * len(leases)
        with self._changed:
            for lease, remaining_s in zip(leases, left, strict=True):
                self._note(lease, asked_at, remaining_s)
            self._asked.discard(owner)
            self._changed.notify()

    def _note(self, lease: Lease, asked_at: float, remaining_s: float | None) -> None:
        """Take in an answer: time left, 0 for a lease that has ended, None for no answer."""
        if remaining_s:
            lease.expires = asked_at + remaining_s  # not later than the owner thinks
        elif remaining_s == 0:
            lease.end("its owner has ended it")
        elif self._clock() >= lease.expires:
            lease.end(_UNANSWERED)
        if lease not in self._beats:
            return  # it was released meanwhile
        if lease.ended is None:
            self._beats[lease] = self._clock() + self._pause_s(lease)
        else:
            del self._beats[lease]

    def _pause_s(self, lease: Lease) -> float:
        return lease.ttl_s / self._config.heartbeats


def _seconds(value: object) -> float:
    seconds = number(value, "remaining time")
    if seconds < 0:
        raise MalformedMessage("remaining time", "0 or more")
    return seconds
