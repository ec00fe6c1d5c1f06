"""The directory of one process: for tests, and for workers that share a process."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from stafette.kvtransfer.directory.records import decode, may_replace
from stafette.kvtransfer.directory.store import Change, Claim, Feed, Store
from stafette.kvtransfer.errors import InvalidValue, MalformedMessage, NameTaken


@dataclass(slots=True)
class _Entry:
    claim: Claim
    expires_at: float


class MemoryStore(Store):
    """Whoever asks anything lets those expire whose time has come; so does a feed that waits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.place = "this process"
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._feeds: list[MemoryFeed] = []

    def put(self, claim: Claim, timeout_s: float) -> None:
        with self._lock:
            self._expire()
            held = self._entries.get(claim.name)
            if held is not None:
                _check_replaces(claim, held.claim)
            self._entries[claim.name] = _Entry(claim, self._clock() + claim.ttl_s)
            self._tell(claim.name, claim.value)

    def renew(self, claim: Claim, timeout_s: float) -> bool:
        with self._lock:
            self._expire()
            if not self._holds(claim):
                return False
            self._entries[claim.name].expires_at = self._clock() + claim.ttl_s
            return True

    def remove(self, claim: Claim, timeout_s: float) -> None:
        with self._lock:
            self._expire()
            if self._holds(claim):
                del self._entries[claim.name]
                self._tell(claim.name, None)

    def read(self, name: str, timeout_s: float) -> bytes | None:
        with self._lock:
            self._expire()
            held = self._entries.get(name)
        return held.claim.value if held else None

    def follow(self, silence_s: float, timeout_s: float) -> "MemoryFeed":
        with self._lock:
            self._expire()
            values = {name.encode(): held.claim.value for name, held in self._entries.items()}
            feed = MemoryFeed(self, values)
            self._feeds.append(feed)
        return feed

    def close(self) -> None:
        """Others may use it on."""

    def expire(self) -> float | None:
        """Forget who is overdue; return after which time somebody else may be."""
        with self._lock:
            self._expire()
            next_at = min((held.expires_at for held in self._entries.values()), default=None)
            return None if next_at is None else next_at - self._clock()

    def leave(self, feed: "MemoryFeed") -> None:
        with self._lock:
            self._feeds = [other for other in self._feeds if other is not feed]

    def _expire(self) -> None:
        now = self._clock()
        for name in [name for name, held in self._entries.items() if held.expires_at <= now]:
            del self._entries[name]
            self._tell(name, None)

    def _holds(self, claim: Claim) -> bool:
        held = self._entries.get(claim.name)
        return held is not None and held.claim.hold == claim.hold

    def _tell(self, name: str, value: bytes | None) -> None:
        for feed in self._feeds:
            feed.add((name.encode(), value))


class MemoryFeed(Feed):
    def __init__(self, store: MemoryStore, snapshot: dict[bytes, bytes]) -> None:
        self.snapshot = snapshot
        self.rewound = False
        self.heard_at = time.monotonic()
        self._store = store
        self._changes: SimpleQueue[Change | None] = SimpleQueue()  # None: wake up

    def add(self, change: Change) -> None:
        self._changes.put(change)

    def next(self, timeout_s: float) -> Sequence[Change]:
        expiry_s = self._store.expire()
        wait_s = timeout_s if expiry_s is None else min(timeout_s, expiry_s)
        try:
            change = self._changes.get(timeout=max(wait_s, 0))
        except Empty:
            change = None
        self.heard_at = time.monotonic()
        return () if change is None else (change,)

    def close(self) -> None:
        self._store.leave(self)
        self._changes.put(None)


_shared: dict[str, MemoryStore] = {}
_shared_lock = threading.Lock()


def shared_store(cluster: str, options: object = None) -> MemoryStore:
    """Return the store that all directories of this cluster in this process have in common."""
    if options is not None:
        raise InvalidValue("directory options", options, "the memory directory has none")
    with _shared_lock:
        return _shared.setdefault(cluster, MemoryStore())


def _check_replaces(claim: Claim, held: Claim) -> None:
    try:
        epoch = decode(held.value).epoch
    except MalformedMessage:
        return
    if not may_replace(claim.epoch, epoch, claim.hold == held.hold):
        raise NameTaken(claim.name, claim.epoch, epoch)
