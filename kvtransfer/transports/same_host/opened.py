"""A peer's region as it is open here: where its bytes are, and how they are copied."""

import ctypes
import os
import threading
from abc import ABC, abstractmethod

from stafette.kvtransfer.errors import AccessDenied, PeerLost, TransferError
from stafette.kvtransfer.native.moving import (
    HOLDING_BYTES,
    Mover,
    Outcome,
    Words,
    pack_source,
    pack_target,
)
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import Grant, OneRange, ReadJob
from stafette.kvtransfer.transports.same_host.truth import Truth

NO_MARK = 0, 0, 0  # of what is no process


class Stopped(Exception):
    """The job's `stop` was set before everything had arrived."""


class Opened(ABC):
    """One generation of a peer's region, for any number of threads. It is closed when it was
    retired and nobody holds it any more."""

    quick = True  # reading some bytes of it waits for no device

    def __init__(self, peer: str, info: RegionInfo, truth: Truth, mover: Mover | None) -> None:
        self.peer = peer
        self.info = info
        self.truth = truth
        self._mover = mover
        # Jobs under one lease follow each other, and so do those into one region.
        self._last: tuple[Grant, bytes] | None = None
        self._last_pair: tuple[Grant, LocalRegion, bytes] | None = None
        self._holders = 1  # whoever retires it is one
        self._lock = threading.Lock()

    def hold(self) -> bool:
        """Keep it open until `release`; False when it is closed already."""
        with self._lock:
            if not self._holders:
                return False
            self._holders += 1
            return True

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            self.close()

    def retire(self) -> None:
        """Close it when nobody reads it. To be called once, by whoever keeps it."""
        self.release()

    def read(self, job: ReadJob) -> None:
        """Copy what a job asks for. When it returns, the bytes are what the lease promised."""
        if job.source.region != self.info.name:
            asked = f"region {job.source.region}"
            raise AccessDenied(self.peer, asked, f"the lease is for region {self.info.name}")
        if self._mover is not None:
            self._read_natively(self._mover, job)
        else:
            self._read_plainly(job)

    def read_now(self, one: OneRange, grant: Grant, local: LocalRegion) -> bool:
        """Copy a little, the interpreter's lock in hand: True when it is there, and was promised.

        Whoever deregisters our region needs that lock, too. So either it is told before we begin,
        by `withdrawn`, or the bytes are there when it goes on.
        """
        if self._mover is None or not self.quick or one[2] > HOLDING_BYTES:
            return False
        try:
            return self._mover.move_one(self._packed_pair(grant, local), one)
        except TransferError:  # the grant is wrong
            return False

    @abstractmethod
    def place(self) -> Words:
        """Return the source as native code needs it: kind, from, bytes, handle, mark."""

    @abstractmethod
    def copy(self, job: ReadJob) -> bool:
        """Copy in Python; return False when it was stopped before the end."""

    def close(self) -> None:
        """Give back what is not memory."""
        return

    def _read_natively(self, mover: Mover, job: ReadJob) -> None:
        local = job.local
        target = pack_target(local.address, local.info.nbytes, ctypes.addressof(job.stop))
        packed = self._packed_source(job.grant) + target
        pair = job.into, job.source
        outcome, detail = mover.move(packed, pair, job.advance, waits=not self.quick)
        if outcome is not Outcome.DONE:
            self._explain(job, outcome, detail)

    def _packed_source(self, grant: Grant) -> bytes:
        last = self._last
        if last is None or last[0] is not grant:
            last = self._last = grant, pack_source(self.truth.words(grant), self.place())
        return last[1]

    def _packed_pair(self, grant: Grant, local: LocalRegion) -> bytes:
        last = self._last_pair
        if last is None or last[0] is not grant or last[1] is not local:
            stop = ctypes.addressof(local.withdrawn)
            target = pack_target(local.address, local.info.nbytes, stop)
            last = self._last_pair = grant, local, self._packed_source(grant) + target
        return last[2]

    def _read_plainly(self, job: ReadJob) -> None:
        if job.stop.value:
            raise Stopped
        self._check(job)
        if not self.copy(job):
            raise Stopped
        self.truth.check(self.peer, job.grant, job.source)

    def _explain(self, job: ReadJob, outcome: Outcome, detail: int) -> None:
        """Raise what a native call told."""
        if outcome is Outcome.STOPPED:
            raise Stopped
        if outcome is Outcome.FAILED:
            raise self.failed(detail)
        if outcome is Outcome.SHORT:
            raise self.short()
        if outcome is Outcome.OTHER:
            raise PeerLost(self.peer, "its process is another one now")
        self._check(job)
        raise TransferError(f"reading {self.peer}/{self.info.name}: it changed, and changed back")

    def short(self) -> TransferError:
        return TransferError(f"the file of {self.peer}/{self.info.name} ends too early")

    def failed(self, number: int) -> TransferError:
        """Return what an errno means here."""
        return TransferError(f"reading {self.peer}/{self.info.name}: {os.strerror(number)}")

    def _check(self, job: ReadJob) -> None:
        """Raise what forbids a job now, if anything does."""
        for region, extents in ((job.local.info, job.into), (self.info, job.source)):
            if not extents.within(region.nbytes):
                reason = f"the region has {region.nbytes} bytes"
                raise AccessDenied(self.peer, f"bytes beyond {region.name}", reason)
        self.truth.check(self.peer, job.grant, job.source)
