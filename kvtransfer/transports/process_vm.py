"""Reads private memory of a peer on the same host: arrays and tensors that nobody can map.

Opt-in, for it goes past what a process has registered: whoever may trace the owner can read all of
its memory. It needs the same user, and a Yama scope of 0 or CAP_SYS_PTRACE; who lacks that is told
so. Leases are seen in the owner's ledger, as by shm.

Each agent keeps 16 random bytes by which its process is known. They are read after every copy: when
another process got its number, or another program runs in it, they are not there.
"""

import ctypes
import errno
import os
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from stafette.kvtransfer.errors import (
    AccessDenied,
    MalformedMessage,
    PeerLost,
    TransferError,
    TransportUnavailable,
)
from stafette.kvtransfer.native import moving
from stafette.kvtransfer.native.moving import Mover, Source, Words
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.strict import whole
from stafette.kvtransfer.transport import Capabilities, PeerInfo, ReadJob, Surroundings
from stafette.kvtransfer.transports.same_host import plain, process_memory
from stafette.kvtransfer.transports.same_host.config import SameHostConfig
from stafette.kvtransfer.transports.same_host.opened import Opened
from stafette.kvtransfer.transports.same_host.owner import SameHostTransport, Shown
from stafette.kvtransfer.transports.same_host.truth import Truth

_MARK = struct.Struct("=2Q")
_PID_END, _ADDRESS_END = 1 << 31, 1 << 63
_TRY_AGAIN_S = 10.0  # after which a process that could not be read is tried again


@dataclass(frozen=True, slots=True)
class Process:
    """A peer's process, and the bytes by which it is known."""

    pid: int
    mark_address: int
    mark: bytes

    @classmethod
    def read(cls, endpoint: object) -> "Process":
        match endpoint:
            case [pid, address, mark]:
                if type(mark) is bytes and len(mark) == _MARK.size:
                    number = whole(pid, "process id", _PID_END)
                    return cls(number, whole(address, "address", _ADDRESS_END), mark)
        raise MalformedMessage("process", f"[pid, address, {_MARK.size} bytes]")

    def check(self) -> None:
        """Raise OSError when it cannot be read, ProcessLookupError when it is another one."""
        if process_memory.read_bytes(self.pid, self.mark_address, _MARK.size) != self.mark:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


class ProcessVmTransport(SameHostTransport):
    name = "process_vm"

    def __init__(
        self,
        surroundings: Surroundings,
        config: SameHostConfig | None = None,
        native: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(surroundings, config or SameHostConfig())
        self._mover = moving.load() if native else None
        self._clock = clock
        self._mark = ctypes.create_string_buffer(secrets.token_bytes(_MARK.size), _MARK.size)
        self._tried: dict[str, tuple[int, float, str]] = {}  # peer -> epoch, when, what was wrong
        self.capabilities = Capabilities(
            reads_from=frozenset({"host"}),
            reads_into=frozenset({"host"}),
            same_host=True,
            setup_us=15.0,
            gb_per_s=7.0,
            inline_bytes=self._config.inline_bytes,
        )

    def endpoint(self) -> object:
        return [os.getpid(), ctypes.addressof(self._mark), self._mark.raw]

    def close(self) -> None:
        """End everything; from now on nobody knows this process any more."""
        ctypes.memset(self._mark, 0, _MARK.size)
        super().close()

    def _show(self, region: LocalRegion) -> Shown | None:
        return Shown(region.address, []) if region.info.kind == "host" else None

    def _not_shown(self, peer: PeerInfo, remote: RegionInfo) -> str:
        return f"{peer.name} does not offer its private memory"

    def _why_not(self, peer: PeerInfo) -> str:
        epoch, tried_at, wrong = self._tried.get(peer.name, (-1, 0.0, ""))
        now = self._clock()
        if epoch != peer.epoch or (wrong and now >= tried_at + _TRY_AGAIN_S):
            wrong = _wrong_with(peer)
            self._tried[peer.name] = peer.epoch, now, wrong
        return wrong

    def _opened(self, peer: PeerInfo, info: RegionInfo, truth: Truth, shown: Shown) -> Opened:
        process = Process.read(peer.endpoints.get(self.name))
        return ProcessMemory(peer.name, info, truth, self._mover, (process, shown.place))


class ProcessMemory(Opened):
    """Memory at an address of a peer's process."""

    def __init__(
        self,
        peer: str,
        info: RegionInfo,
        truth: Truth,
        mover: Mover | None,
        where: tuple[Process, int],
    ) -> None:
        super().__init__(peer, info, truth, mover)
        self._process, self._address = where
        pid, mark = self._process.pid, _MARK.unpack(self._process.mark)
        known_by = self._process.mark_address, *mark
        self._place = Source.PROCESS, self._address, info.nbytes, pid, *known_by

    def place(self) -> Words:
        return self._place

    def copy(self, job: ReadJob) -> bool:
        try:
            return self._copy(job) and self._is_the_same()
        except OSError as error:
            raise self.failed(error.errno or 0) from error

    def failed(self, number: int) -> TransferError:
        reason = process_memory.reason(number)
        if number == errno.ESRCH:
            return PeerLost(self.peer, reason)
        if number == errno.EFAULT:
            return AccessDenied(self.peer, f"region {self.info.name}", reason)
        return TransportUnavailable(ProcessVmTransport.name, self.peer, reason)

    def _copy(self, job: ReadJob) -> bool:
        most = process_memory.MAX_VECTORS
        for to, of, length in plain.pieces(job.into, job.source):
            if job.stop.value:
                return False
            for first in range(0, len(to), most):
                some = slice(first, first + most)
                ours = process_memory.vectors(to[some] + job.local.address, length)
                theirs = process_memory.vectors(of[some] + self._address, length)
                process_memory.read(self._process.pid, ours, theirs)
            job.advance(len(to) * length)
        return True

    def _is_the_same(self) -> bool:
        self._process.check()
        return True


def _wrong_with(peer: PeerInfo) -> str:
    """Return why the peer's process cannot be read; empty: it can."""
    try:
        Process.read(peer.endpoints.get(ProcessVmTransport.name)).check()
    except OSError as error:
        return process_memory.reason(error.errno or 0)
    except MalformedMessage as error:
        return str(error)
    return ""
