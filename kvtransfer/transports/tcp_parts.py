"""A job on its way through one stream, or in parts through several of them."""

import ctypes
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol

import numpy as np

from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    MalformedMessage,
    TransferCancelled,
    TransferError,
    TransferTimedOut,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transport import ReadJob
from stafette.kvtransfer.transports.tcp_flow import Digest, Flow
from stafette.kvtransfer.transports.tcp_frames import FAILED, Header, Request, read_failure
from stafette.kvtransfer.transports.tcp_ranges import Ranges
from stafette.kvtransfer.transports.tcp_way import Way

_numbers = count(1)


class Carrier(Protocol):
    """The stream that a part was given to."""

    def start(self, part: "Part") -> None: ...
    def interrupt(self, part: "Part") -> None: ...
    def lend(self, part: "Part", over: Callable[[], object], until: float) -> None: ...


class Work:
    """A job and its parts. When one fails the others stop; the last one to end finishes the job."""

    def __init__(self, job: ReadJob, way: Way, on_finished: Callable[[ReadJob], None]) -> None:
        self.job = job
        self.way = way
        self.began = time.monotonic()
        self.stop = ctypes.c_int32(0)  # watched by native loops
        self.num_parts = 1
        self.parts: list[Part] = []
        self._on_finished = on_finished
        self._num_ended = 0
        self._error: TransferError | None = None
        self._lock = threading.Lock()

    def interrupt(self) -> None:
        """Let all parts end soon."""
        self.stop.value = 1
        for part in self.parts:
            part.carrier.interrupt(part)

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            self.job.advance(num_bytes)

    def ended(self, error: TransferError | None) -> None:
        """One more part writes no more."""
        with self._lock:
            self._num_ended += 1
            first = self._error is None and error is not None
            if first:
                self._error = error
            last = self._num_ended == self.num_parts
        if first and not last:
            self.interrupt()
        if last:
            self.parts = []  # which know this one: a circle would keep the memory until it is found
            self._on_finished(self.job)
            self.job.finish(self._error)


class Part:
    """What one stream has to bring."""

    def __init__(self, work: Work, carrier: Carrier, into: Extents, source: Extents) -> None:
        job = work.job
        self.number = next(_numbers)
        self.work = work
        self.carrier = carrier
        self.num_extents = len(source)
        self.deadline = job.deadline
        digest = Digest(work.way.config.native) if job.verify else None
        self.flow = Flow(self.number, Ranges.of(job.local, into), digest, work.stop)
        grant = job.grant
        self.message = Request(
            self.number, grant.lease_id, grant.epoch, grant.region.generation, source, job.verify
        ).pack()

    def arrived(self, num_bytes: int) -> None:
        self.flow.passed()
        self.work.advance(num_bytes)

    def why_over(self, now: float) -> TransferError | None:
        """Return why it should not go on, or None."""
        if self.work.stop.value:
            return TransferCancelled(self.work.way.peer)
        if now >= self.deadline:
            return TransferTimedOut(self.work.way.peer, "reading", self.deadline - self.work.began)
        return None

    def verdict(self, header: Header, body: bytes) -> TransferError | None:
        """Return what the owner's last frame means for it."""
        if header.kind == FAILED:
            return read_failure(body)
        if self.flow.ranges.left:
            raise MalformedMessage("frame", f"{self.flow.ranges.left} more bytes of the job")
        digest = self.flow.digest
        if digest is not None and digest.value() != header.digest:
            return ChecksumMismatch(self.work.way.peer, self.work.job.remote.name)
        return None

    def finish(self, error: TransferError | None) -> None:
        self.work.ended(error)


def cut(extents: Extents, num_parts: int) -> list[Extents]:
    """Return consecutive parts of about as many bytes each; every one has some."""
    ends = np.cumsum(extents.lengths)
    total = int(ends[-1])
    bounds = [total * i // num_parts for i in range(num_parts + 1)]
    return [_between(extents, ends, *pair) for pair in zip(bounds, bounds[1:], strict=False)]


def _between(extents: Extents, ends: np.ndarray, start: int, end: int) -> Extents:
    starts = ends - extents.lengths
    first = int(np.searchsorted(ends, np.uint64(start), "right"))
    last = int(np.searchsorted(starts, np.uint64(end), "left"))
    offsets, lengths = extents.offsets[first:last].copy(), extents.lengths[first:last].copy()
    skipped = np.uint64(start) - starts[first]
    offsets[0] += skipped
    lengths[0] -= skipped
    lengths[-1] -= ends[last - 1] - np.uint64(end)
    return Extents(extents.region, offsets, lengths)
