"""The directory of peers: who lives, with which metadata, and who has come and gone.

A peer is published for as long as its process sends heartbeats. What this process knows of the
others stays usable while the backend is not to be reached.
"""

import math
import secrets
import threading
import time
from collections.abc import Mapping
from hashlib import blake2b
from types import TracebackType

from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.counters import Counters, Tally
from stafette.kvtransfer.directory.follower import Follower
from stafette.kvtransfer.directory.picture import Picture
from stafette.kvtransfer.directory.records import PeerRecord, check_name, decode, encode
from stafette.kvtransfer.directory.registration import Desk, Registration
from stafette.kvtransfer.directory.store import Claim, Store
from stafette.kvtransfer.directory.watches import Callback, Filter, Watch
from stafette.kvtransfer.errors import (
    DirectoryUnavailable,
    InvalidValue,
    MalformedMessage,
    NameTaken,
    PeerNotFound,
)


class Directory:
    """Threads may share it. From asyncio, call what waits by `asyncio.to_thread`."""

    def __init__(self, store: Store, config: DirectoryConfig | None = None) -> None:
        self.config = config or DirectoryConfig()
        self._store = store
        self._tally = Tally()
        self._desk = Desk(store, self._tally, self.config.timeout_s)
        self._picture = Picture(self.config.ttl_s, self._tally)
        self._follower = Follower(store, self._picture, self.config, self._tally)
        self._secret = secrets.token_bytes(16)
        self._registrations: dict[int, Registration] = {}  # by their holds; replaced, not changed
        self._watches: list[Watch] = []
        self._lock = threading.Lock()
        self._closed = False
        self._picture.listen(self._on_change)

    def __enter__(self) -> "Directory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def silent_s(self) -> float:
        """For how long nothing was heard of the backend; infinite before anything was.

        More than `config.silence_s` means: what `get` and `list` tell may be out of date.
        """
        heard_at = self._follower.heard_at
        return math.inf if heard_at is None else time.monotonic() - heard_at

    def publish(
        self,
        name: str,
        record: PeerRecord,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Registration:
        """Let others find this peer; NameTaken when a newer life, or one as new, has the name.

        After DirectoryUnavailable it is not published, and may be tried again.
        """
        check_name(name)
        ttl_s = self.config.ttl_s if ttl_s is None else ttl_s
        if not ttl_s > 0:
            raise InvalidValue("ttl_s", ttl_s, "must be above 0")
        # Tried again, it is the same claim: what may have got through the first time is our own.
        hold = _hold(self._secret, name, record.epoch)
        claim = Claim(name, hold, record.epoch, encode(record), ttl_s)
        registration = Registration(self._desk, claim, record)
        self._enter(hold, registration)
        try:
            registration.begin(self._or_default(timeout_s))
        except BaseException:
            self._leave(registration)
            raise
        self._on_change(name)  # an older life of ours may end
        return registration

    def get(
        self, name: str, timeout_s: float | None = None, fresh: bool = False
    ) -> PeerRecord | None:
        """Return a peer's record; None: there is no such peer.

        It is what this process knows; `fresh` asks the backend, which may not be available.
        """
        timeout_s = self._or_default(timeout_s)
        if fresh:
            check_name(name)
            return self._read(name, timeout_s)
        with self._picture.changed:
            self._await_picture(time.monotonic() + timeout_s)
            return self._picture.records.get(name)

    def find(self, name: str, timeout_s: float | None = None, min_epoch: int = 0) -> PeerRecord:
        """Wait for a peer of that epoch or a newer one; PeerNotFound when none was published."""
        timeout_s = self._or_default(timeout_s)
        deadline = time.monotonic() + timeout_s
        with self._picture.changed:
            self._await_picture(deadline)
            while True:
                record = self._picture.records.get(name)
                if record is not None and record.epoch >= min_epoch:
                    return record
                self._check_open()
                if not self._picture.changed.wait(max(deadline - time.monotonic(), 0)):
                    raise PeerNotFound(name, timeout_s)

    def list(
        self,
        prefix: str = "",
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, PeerRecord]:
        """Return who is known, with this beginning of the name and all these labels, by name."""
        wanted = Filter(prefix, labels or {})
        with self._picture.changed:
            self._await_picture(time.monotonic() + self._or_default(timeout_s))
            known = sorted(self._picture.records.items(), key=lambda item: item[0])
            return {name: record for name, record in known if wanted.takes(name, record)}

    def watch(
        self,
        callback: Callback | None = None,
        prefix: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Watch:
        """Tell who is there, and then what changes: to a callback, or to whoever iterates.

        A callback is called in a thread of its own. A slow consumer is told less, never anything
        that does not add up. During an outage it is told nothing, and the difference afterwards.
        """
        with self._lock:
            self._check_open()
            watch = Watch(self._picture, Filter(prefix, labels or {}))
            self._watches = [other for other in self._watches if not other.closed] + [watch]
        self._follower.start()
        if callback is not None:
            watch.call(callback, self._tally)
        return watch

    def counters(self) -> Counters:
        return self._tally.read()

    def close(self) -> None:
        """Withdraw what is published, and end every watch. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        deadline = time.monotonic() + self.config.timeout_s
        for registration in [*self._registrations.values()]:
            registration.withdraw(deadline - time.monotonic())
        for watch in self._watches:
            watch.close()
        self._follower.stop()
        self._store.close()
        self._follower.join()
        with self._picture.changed:
            self._picture.changed.notify_all()

    def _enter(self, hold: int, registration: Registration) -> None:
        with self._lock:
            self._check_open()
            running = {h: r for h, r in self._registrations.items() if not r.ended.done()}
            if hold in running:
                epoch = registration.record.epoch
                raise NameTaken(registration.name, epoch, epoch)
            self._registrations = running | {hold: registration}

    def _leave(self, registration: Registration) -> None:
        with self._lock:
            entered = self._registrations.items()
            self._registrations = {h: r for h, r in entered if r is not registration}

    def _on_change(self, name: str) -> None:
        """Have our lives of that name look whether they still hold it."""
        for registration in self._registrations.values():
            if registration.name == name:
                registration.check_soon()

    def _read(self, name: str, timeout_s: float) -> PeerRecord | None:
        value = self._store.read(name, timeout_s)
        try:
            return None if value is None else decode(value)
        except MalformedMessage:
            self._tally.count("malformed")
            return None

    def _await_picture(self, deadline: float) -> None:
        """Wait for the first snapshot; from then on there is always something to tell."""
        self._check_open()
        self._follower.start()
        while not self._picture.complete:
            if not self._picture.changed.wait(max(deadline - time.monotonic(), 0)):
                reason = self._follower.trouble or "it has not answered yet"
                raise DirectoryUnavailable(self._store.place, reason)
            self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise DirectoryUnavailable(self._store.place, "this directory is closed")

    def _or_default(self, timeout_s: float | None) -> float:
        return self.config.timeout_s if timeout_s is None else timeout_s


def _hold(secret: bytes, name: str, epoch: int) -> int:
    """Return this directory's number for a life, in 1..2**63 - 1."""
    digest = blake2b(f"{epoch}|{name}".encode(), key=secret, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 or 1
