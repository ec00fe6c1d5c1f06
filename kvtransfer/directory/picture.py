"""Who is there, as far as this process knows: what a snapshot and the changes since then tell.

While a backend is not to be reached, nobody can renew a claim. So after an outage, those who are
missing are kept for a while: they may only be late, and to lose all workers for a moment would cost
more than to know a dead one for a little longer.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from stafette.kvtransfer.directory.counters import Tally
from stafette.kvtransfer.directory.records import PeerRecord, decode, decode_name
from stafette.kvtransfer.directory.store import Change
from stafette.kvtransfer.errors import MalformedMessage

_log = logging.getLogger(__name__)

Listener = Callable[[str], None]  # told of a name under the picture's lock: must not block


class Picture:
    """Every access is under `changed`, which is notified of every change."""

    def __init__(
        self, patience_s: float, tally: Tally, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.changed = threading.Condition()
        self.complete = False  # a snapshot was seen
        self.records: dict[str, PeerRecord] = {}
        self._patience_s = patience_s
        self._patient_until: float | None = None
        self._missing: set[str] = set()  # of the records; shown until then
        self._tally = tally
        self._clock = clock
        self._listeners: list[Listener] = []

    def replace(self, snapshot: Mapping[bytes, bytes], after_outage: bool) -> None:
        """Take a snapshot for all there is."""
        with self.changed:
            self._tally.count("snapshots")
            if after_outage:
                self._patient_until = self._clock() + self._patience_s
            found = self._read_all(snapshot.items())
            for name in [*self.records]:
                if found.get(name) is None:
                    self._miss(name)
            for name, record in found.items():
                self._take(name, record)
            self.complete = True
            self.changed.notify_all()

    def apply(self, changes: Iterable[Change]) -> None:
        with self.changed:
            for change in changes:
                self._tally.count("changes")
                for name, record in self._read_all([change]).items():
                    self._take(name, record)
                self.changed.notify_all()
            self._give_up()

    def listen(self, listener: Listener) -> None:
        with self.changed:
            self._listeners.append(listener)

    def ignore(self, listener: Listener) -> None:
        with self.changed:
            self._listeners.remove(listener)

    def _read_all(self, items: Iterable[Change]) -> dict[str, PeerRecord | None]:
        """Return records by name, None for a value that is none; skip what has no name."""
        found: dict[str, PeerRecord | None] = {}
        for key, value in items:
            name = None
            try:
                name = decode_name(key)
                found[name] = None if value is None else decode(value)
            except MalformedMessage as error:
                self._tally.count("malformed")
                _log.warning("skipped what is no peer, under %r: %s", key[:64], error)
                if name is not None:
                    found[name] = None
        return found

    def _take(self, name: str, record: PeerRecord | None) -> None:
        if record is None:
            self._miss(name)
            return
        self._missing.discard(name)
        self.records[name] = record
        self._tell(name)

    def _miss(self, name: str) -> None:
        if name not in self.records:
            return
        if self._patient_until is None or self._clock() >= self._patient_until:
            self._missing.discard(name)
            del self.records[name]
        elif name not in self._missing:
            self._tally.count("kept")
            self._missing.add(name)
        self._tell(name)

    def _give_up(self) -> None:
        """Drop those who did not come again in time."""
        if self._patient_until is None or self._clock() < self._patient_until:
            return
        self._patient_until = None
        for name in self._missing:
            del self.records[name]
            self._tell(name)
        self._missing.clear()
        self.changed.notify_all()

    def _tell(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)
