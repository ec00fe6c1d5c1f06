"""Copies a job's ranges by a GPU's copy engines, on a stream that no other job uses meanwhile."""

import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from stafette.kvtransfer.transport import ReadJob
from stafette.kvtransfer.transports.cuda.driver import Copies, CudaDriver, CudaError, Direction
from stafette.kvtransfer.transports.cuts import Cuts, Part

_POLL_S = 20e-6
_DEPTH = 2  # parts that are queued: the engines never wait for us


@dataclass(frozen=True, slots=True)
class Way:
    """From where, in which direction, and whose engines do it."""

    source: int  # the address of the first byte of the region
    direction: Direction
    device: int


class Copier:
    def __init__(self, driver: CudaDriver, part_bytes: int) -> None:
        self._driver = driver
        self._part_bytes = part_bytes
        self._idle: list[tuple[int, int]] = []  # streams and their devices
        self._num_lent = 0
        self._closed = False
        self._lock = threading.Lock()

    def copy(self, job: ReadJob, way: Way) -> bool:
        """Return when nothing is written any more: True when all is there, False when stopped."""
        stream = self._take(way.device)
        sound = False
        try:
            done = self._run(job, way, stream)
            sound = True
        finally:
            self._give_back(stream, way.device, sound)
        return done

    def close(self) -> bool:
        """Give the streams back; return whether no job has one."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            num_lent = self._num_lent
        for stream, device in idle:
            self._driver.end_stream(stream, device)
        return not num_lent

    def _run(self, job: ReadJob, way: Way, stream: int) -> bool:
        into, source = Cuts(job.into, self._part_bytes), Cuts(job.source, self._part_bytes)
        queued: deque[tuple[int, int]] = deque()  # events, bytes
        try:
            for number in range(len(into)):
                if len(queued) == _DEPTH:
                    self._await(queued, job, way.device)
                if job.stop.value:
                    return False
                self._driver.copy(
                    _copies(job, way, into[number], source[number]), stream, way.device
                )
                queued.append((self._driver.mark(stream, way.device), into.size(number)))
            while queued:
                self._await(queued, job, way.device)
        finally:
            self._driver.synchronize(stream, way.device)
            for event, _ in queued:
                self._driver.has_come(event, way.device)
        return True

    def _await(self, queued: deque[tuple[int, int]], job: ReadJob, device: int) -> None:
        event, nbytes = queued.popleft()
        while not self._driver.has_come(event, device):
            time.sleep(_POLL_S)
        job.advance(nbytes)

    def _take(self, device: int) -> int:
        with self._lock:
            if self._closed:
                raise CudaError("the transport was closed")
            self._num_lent += 1
            found = next((each for each in self._idle if each[1] == device), None)
            if found is not None:
                self._idle.remove(found)
                return found[0]
        try:
            return self._driver.new_stream(device)
        except CudaError:
            with self._lock:
                self._num_lent -= 1
            raise

    def _give_back(self, stream: int, device: int, sound: bool) -> None:
        """Nothing runs on it any more, or nothing ever will on its device."""
        with self._lock:
            self._num_lent -= 1
            keep = sound and not self._closed
            if keep:
                self._idle.append((stream, device))
        if not keep:
            with suppress(CudaError):
                self._driver.end_stream(stream, device)


def _copies(job: ReadJob, way: Way, into: Part, source: Part) -> Copies:
    return Copies(
        way.direction,
        into.offsets + np.uint64(job.local.address),
        source.offsets + np.uint64(way.source),
        into.lengths,
    )
