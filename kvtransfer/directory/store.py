"""What a backend of the directory has to do. Plain values, no callbacks: an actor can do it, too.

A backend tells who is alive by their renewals, and tells every follower what changes. It never
looks for a value's meaning, but for its epoch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """One life's claim to a name. It ends `ttl_s` after the last renewal."""

    name: str
    hold: int  # random, 1..2**63 - 1: tells this life's key from any other's
    epoch: int
    value: bytes  # as records.encode made it
    ttl_s: float


Change = tuple[bytes, bytes | None]  # a name as it stands there, and its value; None: it is gone


class Feed(ABC):
    """All records at one moment, then every change since, in order."""

    snapshot: Mapping[bytes, bytes]
    rewound: bool  # the backend has lost what it had: those who are missing may come again
    heard_at: float  # of time.monotonic: the backend's last sign of life

    @abstractmethod
    def next(self, timeout_s: float) -> Sequence[Change]:
        """Return what has changed, or nothing after that time.

        DirectoryUnavailable when the feed has ended, and changes are lost: follow anew.
        """

    @abstractmethod
    def close(self) -> None:
        """End, and whoever waits for what is next. Safe to call twice, and from any thread."""


class Store(ABC):
    """Threads may share it. Whatever does not end in time raises DirectoryUnavailable."""

    place: str  # for people

    @abstractmethod
    def put(self, claim: Claim, timeout_s: float) -> None:
        """Write the claim's value, and renew it; NameTaken when `may_replace` says no.

        It may be repeated when nobody knows whether it was done.
        """

    @abstractmethod
    def renew(self, claim: Claim, timeout_s: float) -> bool:
        """Return whether the claim holds, and for another `ttl_s`; if not, it has to be put."""

    @abstractmethod
    def remove(self, claim: Claim, timeout_s: float) -> None:
        """Remove the record, if this claim still holds it."""

    @abstractmethod
    def read(self, name: str, timeout_s: float) -> bytes | None:
        """Return the newest value."""

    @abstractmethod
    def follow(self, silence_s: float, timeout_s: float) -> Feed:
        """Begin a feed, which ends when nothing was heard of the backend for `silence_s`."""

    @abstractmethod
    def close(self) -> None:
        """End every call and feed. Safe to call twice."""
