"""A request that was granted: its claim on the blocks, and where their bytes come from."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np

from stafette.kvtransfer.errors import LeaseEnded, StaleEpoch, TransferError, TransportUnavailable
from stafette.kvtransfer.memory import Bytes
from stafette.kvtransfer.regions import RegionKind
from stafette.kvtransfer.transport import Claim, PeerInfo, Surroundings
from stafette.kvtransfer.transports.tcp_config import TcpConfig
from stafette.kvtransfer.transports.tcp_flow import Digest, Flow
from stafette.kvtransfer.transports.tcp_frames import Request
from stafette.kvtransfer.transports.tcp_ranges import Ranges
from stafette.kvtransfer.transports.tcp_wire import Wire


class Task(ABC):
    """Sends what one request asked for, piece by piece; holds the claim until it is released."""

    def __init__(
        self, request: Request, claim: Claim, hold: AbstractContextManager[Claim], config: TcpConfig
    ) -> None:
        self.number = request.number
        self.num_extents = len(request.source)
        self.claim = claim
        self._hold = hold
        self._config = config
        self._digest = Digest(config.native) if request.verify else None

    @property
    @abstractmethod
    def left(self) -> int:
        """How many bytes are still to be sent."""

    @abstractmethod
    def send_some(self, wire: Wire, alone: bool) -> None:
        """Send the next frame, or more of them when nobody else waits."""

    @abstractmethod
    def copy_rest(self) -> bytes:
        """Return all that is left, and count it as sent."""

    def digest(self) -> int:
        """Return that of all bytes that were sent, 0 for a job that is not verified."""
        return 0 if self._digest is None else self._digest.value()

    def release(self) -> None:
        """Give the claim back; once."""
        self._hold.__exit__(None, None, None)

    def _noted(self, body: bytes) -> bytes:
        if self._digest is not None:
            self._digest.update(body)
        return body


class HostTask(Task):
    """Memory is sent from where it lies."""

    def __init__(
        self, request: Request, claim: Claim, hold: AbstractContextManager[Claim], config: TcpConfig
    ) -> None:
        super().__init__(request, claim, hold, config)
        self._source = request.source
        self._total = request.source.total_bytes
        self._flow: Flow | None = None  # when it has begun

    @property
    def left(self) -> int:
        return self._total if self._flow is None else self._flow.ranges.left

    def send_some(self, wire: Wire, alone: bool) -> None:
        flow, config = self._begun(), self._config
        wire.send_frames(flow, config.frame_bytes, config.stall_timeout_s, alone)
        flow.passed()

    def copy_rest(self) -> bytes:
        memory = self.claim.region.memory
        if len(self._source) == 1 and self._flow is None and memory is not None:
            start = int(self._source.offsets[0])  # one small block, as often as not
            rest = memory[start : start + self._total].tobytes()
            self._total = 0
        else:
            rest = self._begun().ranges.take_rest()
        return self._noted(rest)

    def _begun(self) -> Flow:
        if self._flow is None:
            ranges = Ranges.of(self.claim.region, self._source)
            self._flow = Flow(self.number, ranges, self._digest)
        return self._flow


class FileTask(Task):
    """A file is read into a buffer, a frame at a time, and sent from there."""

    def __init__(
        self, request: Request, claim: Claim, hold: AbstractContextManager[Claim], config: TcpConfig
    ) -> None:
        super().__init__(request, claim, hold, config)
        region = claim.region
        self._name = region.name
        self._fd = os.dup(region.fd)  # its registrar may close it while we read
        self._offsets = request.source.offsets + np.uint64(region.address)
        self._lengths = request.source.lengths
        self._index = self._within = 0
        self._left = request.source.total_bytes

    @property
    def left(self) -> int:
        return self._left

    def send_some(self, wire: Wire, alone: bool) -> None:
        buffer = np.empty(min(self._config.frame_bytes, self._left), np.uint8)
        self._fill(buffer)
        flow = Flow(self.number, Ranges.over(buffer, 0, len(buffer)), self._digest)
        wire.send_frames(flow, len(buffer), self._config.stall_timeout_s, alone)
        flow.passed()
        self._left -= len(buffer)

    def copy_rest(self) -> bytes:
        buffer = np.empty(self._left, np.uint8)
        self._fill(buffer)
        self._left = 0
        return self._noted(buffer.tobytes())

    def release(self) -> None:
        os.close(self._fd)
        super().release()

    def _fill(self, buffer: Bytes) -> None:
        room = buffer.data
        while room:
            length = int(self._lengths[self._index]) - self._within
            size = min(length, len(room))
            self._read(room[:size], int(self._offsets[self._index]) + self._within)
            room = room[size:]
            self._within += size
            if size == length:
                self._index, self._within = self._index + 1, 0

    def _read(self, into: memoryview, offset: int) -> None:
        while into:
            try:
                got = os.preadv(self._fd, [into], offset)
            except OSError as error:
                raise TransferError(f"region {self._name}: {error.strerror}") from error
            if not got:
                raise TransferError(f"region {self._name}: its file ends at {offset}")
            into, offset = into[got:], offset + got


_TASKS: Mapping[RegionKind, type[Task]] = {"host": HostTask, "file": FileTask}
SOURCES = frozenset(_TASKS)


def open_task(request: Request, peer: PeerInfo, ours: Surroundings, config: TcpConfig) -> Task:
    """Check what a peer asks for, and hold it; a typed error tells what is wrong."""
    if request.epoch != ours.epoch:
        raise StaleEpoch(ours.name, request.epoch, ours.epoch)
    hold = ours.gate.claim(peer.name, request.lease_id, request.source)
    claim = hold.__enter__()
    try:
        info = claim.region.info
        if info.generation != request.generation:
            raise LeaseEnded(request.lease_id, f"region {info.name} was registered anew")
        task = _TASKS.get(info.kind)
        if task is None:
            raise TransportUnavailable("tcp", ours.name, f"it does not send {info.kind} memory")
        return task(request, claim, hold, config)
    except BaseException:
        hold.__exit__(None, None, None)
        raise
