"""Reads a peer's pool on the same host straight out of its memory, which is mapped here.

It needs nothing but Linux: the owner registers SharedMemory, a sealed memfd that nobody else can
write. Files are read too, through the page cache. A job costs one native call; without the library,
numpy copies. Other kinds of memory cannot be mapped: see process_vm, or tcp.

What was copied is the owner's content as of its epoch, also when the owner was killed meanwhile:
the memory stays as it was, and a dead process overwrites nothing.
"""

import os

from stafette.kvtransfer.memory import Bytes, map_to_read
from stafette.kvtransfer.native import moving
from stafette.kvtransfer.native.moving import Mover, Source, Words
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import Capabilities, PeerInfo, ReadJob, Surroundings
from stafette.kvtransfer.transports.same_host import plain
from stafette.kvtransfer.transports.same_host.config import SameHostConfig
from stafette.kvtransfer.transports.same_host.opened import NO_MARK, Opened
from stafette.kvtransfer.transports.same_host.owner import SameHostTransport, Shown
from stafette.kvtransfer.transports.same_host.truth import Truth


class ShmTransport(SameHostTransport):
    name = "shm"

    def __init__(
        self, surroundings: Surroundings, config: SameHostConfig | None = None, native: bool = True
    ) -> None:
        super().__init__(surroundings, config or SameHostConfig())
        self._mover = moving.load() if native else None
        self.capabilities = Capabilities(
            reads_from=frozenset({"host", "file"}),
            reads_into=frozenset({"host"}),
            same_host=True,
            setup_us=10.0,
            gb_per_s=8.0,
            inline_bytes=self._config.inline_bytes,
        )

    def endpoint(self) -> object:
        return None  # the control connection leads to all that is needed

    def _show(self, region: LocalRegion) -> Shown | None:
        if region.shared is not None:
            return Shown(0, [os.dup(region.shared.fd)])
        if region.info.kind == "file":
            return _shown_file(region)
        return None

    def _not_shown(self, peer: PeerInfo, remote: RegionInfo) -> str:
        if remote.kind == "file":
            return f"{peer.name} cannot open the file of region {remote.name} to read"
        return f"region {remote.name} is not SharedMemory, which alone others can map"

    def _opened(self, peer: PeerInfo, info: RegionInfo, truth: Truth, shown: Shown) -> Opened:
        fd, *_ = shown.fds
        if info.kind == "file":
            return OpenFile(peer.name, info, truth, self._mover, Shown(shown.place, [os.dup(fd)]))
        memory = map_to_read(fd, info.nbytes)
        return MappedMemory(peer.name, info, truth, self._mover, memory)


class MappedMemory(Opened):
    """A peer's SharedMemory. The mapping goes with the last reference to it, so nobody can read
    where nothing is mapped any more."""

    def __init__(
        self, peer: str, info: RegionInfo, truth: Truth, mover: Mover | None, memory: Bytes
    ) -> None:
        super().__init__(peer, info, truth, mover)
        self._memory = memory
        self._place = Source.MEMORY, memory.ctypes.data, info.nbytes, -1, *NO_MARK

    def place(self) -> Words:
        return self._place

    def copy(self, job: ReadJob) -> bool:
        assert job.local.memory is not None
        into, source = (job.local.memory, job.into), (self._memory, job.source)
        return plain.copy(into, source, lambda: bool(job.stop.value), job.advance)


class OpenFile(Opened):
    """A part of a peer's file, which begins at `shown.place`."""

    quick = False

    def __init__(
        self, peer: str, info: RegionInfo, truth: Truth, mover: Mover | None, shown: Shown
    ) -> None:
        super().__init__(peer, info, truth, mover)
        (self._fd,) = shown.fds
        self._offset = shown.place

    def place(self) -> Words:
        return Source.FILE, self._offset, self.info.nbytes, self._fd, *NO_MARK

    def copy(self, job: ReadJob) -> bool:
        memory = job.local.memory
        assert memory is not None
        for to, of, length in plain.pieces(job.into, job.source):
            for start, offset in zip(to.tolist(), of.tolist(), strict=True):
                if job.stop.value:
                    return False
                self._fill(memory[start : start + length], offset)
                job.advance(length)
        return True

    def _fill(self, part: Bytes, offset: int) -> None:
        done = 0
        while done < len(part):
            nbytes = os.preadv(self._fd, [part[done:].data], self._offset + offset + done)
            if not nbytes:
                raise self.short()
            done += nbytes

    def close(self) -> None:
        os.close(self._fd)


def _shown_file(region: LocalRegion) -> Shown | None:
    """Open the file once more, only to read: whoever gets it cannot write through it."""
    try:
        fd = os.open(f"/proc/self/fd/{region.fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    return Shown(region.address, [fd])
