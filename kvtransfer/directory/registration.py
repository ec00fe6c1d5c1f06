"""One published life: its heartbeats, its updates, and its end."""

import logging
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

from stafette.kvtransfer.directory.counters import Tally
from stafette.kvtransfer.directory.records import PeerRecord, encode
from stafette.kvtransfer.directory.store import Claim, Store
from stafette.kvtransfer.errors import DirectoryUnavailable, InvalidValue, NameTaken

_log = logging.getLogger(__name__)

BEATS_PER_TTL = 3
_MAX_PAUSE_S = 0.5  # after a heartbeat that failed

State = Literal["held", "unconfirmed", "withdrawn", "lost"]


@dataclass(frozen=True, slots=True)
class Desk:
    """What the registrations of a directory share."""

    store: Store
    tally: Tally
    timeout_s: float


class Registration:
    """Keeps a record published until it is withdrawn, or a newer life takes the name.

    `ended` is done then: its result is None, or raises NameTaken.
    """

    def __init__(self, desk: Desk, claim: Claim, record: PeerRecord) -> None:
        self.name = claim.name
        self.record = record
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # whoever awaits it cannot cancel it for others
        self._desk = desk
        self._claim = claim
        self._interval_s = claim.ttl_s / BEATS_PER_TTL
        self._confirmed_at = -math.inf
        self._missed = 0  # heartbeats since then
        self._unwritten = True  # the claim's value, as far as is known
        self._writing = threading.Lock()  # one step after the other
        self._withdrawing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"directory-{claim.name}", daemon=True
        )

    def __enter__(self) -> "Registration":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.withdraw()

    @property
    def state(self) -> State:
        """`unconfirmed` means: for a whole ttl no heartbeat was answered."""
        if self.ended.done():
            return "lost" if self.ended.exception() else "withdrawn"
        fresh = time.monotonic() - self._confirmed_at < self._claim.ttl_s
        return "held" if fresh else "unconfirmed"

    def begin(self, timeout_s: float) -> None:
        """Publish for the first time, and go on with heartbeats."""
        with self._turn(timeout_s):
            self._check_running()
            self._write(timeout_s)
            self._thread.start()
        self._desk.tally.count("published")

    def update(
        self,
        metadata: bytes | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Publish other metadata or labels.

        After DirectoryUnavailable the heartbeats go on to try it. Metadata and labels that are not
        given stay as they are.
        """
        timeout_s = self._desk.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        with self._turn(timeout_s):
            self._check_running()
            self.record = PeerRecord(
                self.record.epoch,
                self.record.metadata if metadata is None else metadata,
                self.record.labels if labels is None else dict(labels),
            )
            self._claim = replace(self._claim, value=encode(self.record))
            self._unwritten = True
            try:
                self._write(deadline - time.monotonic())
            except NameTaken as error:
                self._end(error)
                raise

    def withdraw(self, timeout_s: float | None = None) -> bool:
        """Remove the record, and end. Safe to call twice.

        False: the directory did not answer, and the record may stay until its ttl is over.
        """
        timeout_s = self._desk.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        self._withdrawing = True
        self._wake.set()
        removed = self.ended.done() or self._remove(deadline)
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(max(deadline - time.monotonic(), 0))
        self._end(None)
        return removed

    close = withdraw

    def check_soon(self) -> None:
        """Something was heard of that name: look now, not at the next heartbeat."""
        self._wake.set()

    def _run(self) -> None:
        while self._wait():
            try:
                with self._turn(self._interval_s):
                    if not self._withdrawing:
                        self._beat()
            except NameTaken as error:
                self._end(error)
            except DirectoryUnavailable as error:
                self._miss(error.reason)
            except Exception as error:  # our bug; but without heartbeats the record would go
                _log.exception("the heartbeat of %s failed", self.name)
                self._miss(repr(error))

    def _wait(self) -> bool:
        """Wait for the next heartbeat's time; False: there is none."""
        pause_s = self._interval_s * random.uniform(0.8, 1)
        if self._missed:
            pause_s = min(pause_s, _MAX_PAUSE_S)  # the attempt itself has taken its time
        self._wake.wait(pause_s)
        self._wake.clear()
        return not self._withdrawing and not self.ended.done()

    def _beat(self) -> None:
        if self._unwritten:
            self._write(self._interval_s)
        elif self._desk.store.renew(self._claim, self._interval_s):
            self._confirm()
        else:
            self._write(self._interval_s)
            self._desk.tally.count("republished")
            _log.warning("%s was gone from %s: republished", self.name, self._desk.store.place)
        self._desk.tally.count("beats")

    def _write(self, timeout_s: float) -> None:
        self._desk.store.put(self._claim, timeout_s)
        self._unwritten = False
        self._confirm()

    def _confirm(self) -> None:
        if self._missed:
            _log.info("the heartbeats of %s are answered again", self.name)
        self._missed = 0
        self._confirmed_at = time.monotonic()

    def _miss(self, reason: str) -> None:
        self._desk.tally.count("failed_beats")
        if not self._missed:
            _log.warning("a heartbeat of %s was not answered: %s", self.name, reason)
        self._missed += 1

    def _remove(self, deadline: float) -> bool:
        try:
            with self._turn(deadline - time.monotonic()):
                self._desk.store.remove(self._claim, deadline - time.monotonic())
        except DirectoryUnavailable as error:
            _log.warning("%s was not withdrawn, and stays until its ttl: %s", self.name, error)
            return False
        self._desk.tally.count("withdrawn")
        return True

    def _check_running(self) -> None:
        if self.ended.done():
            self.ended.result()  # raises what ended it
        if self._withdrawing:
            raise InvalidValue("registration", self.name, "is withdrawn: publish it again")

    def _end(self, error: NameTaken | None) -> None:
        with suppress(InvalidStateError):  # the first end counts
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
                self._desk.tally.count("lost")
                _log.error("the heartbeats end: %s", error)
                self._wake.set()

    @contextmanager
    def _turn(self, timeout_s: float) -> Iterator[None]:
        if not self._writing.acquire(timeout=max(timeout_s, 0)):
            place = self._desk.store.place
            raise DirectoryUnavailable(place, f"an earlier step took longer than {timeout_s:g} s")
        try:
            yield
        finally:
            self._writing.release()
