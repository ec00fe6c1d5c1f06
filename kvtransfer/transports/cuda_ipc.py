"""The transport between processes whose GPUs are in one host: the reader's GPU copies by itself.

The owner exports the allocation that holds a region, once, when it is registered. A reader opens it
once, and its copy engines move scattered ranges without a kernel: one batched call where the driver
has it (12.8 and newer), else one call a range. What the owner promised is checked in its ledger, as
shm does, before a copy is queued and when the last one has ended. A cancelled job is over when what
was queued has ended, some milliseconds at most.

- From a GPU to a GPU, or to host memory; and from a peer's SharedMemory to a GPU.
- The owner grants a lease when its blocks are complete in memory, not when the kernel that fills
  them is queued: copies here wait for nothing that runs in the owner's process.
- Memory of PyTorch's expandable segments cannot be exported (CUDA's IPC handles are for memory of
  cudaMalloc): such a region has other transports. Freeing exported memory before its readers have
  closed it is undefined, so deregister first.
- Who has the handle can map the whole allocation, also to write. It is told to authenticated peers
  alone; they are trusted with the host's GPUs.

Needs NVIDIA GPUs in one host, Linux, and both processes in the same ipc and pid namespace. The
logic is tested on a double of the driver's library; nothing here was run on a GPU.
"""

import logging
import os
from dataclasses import dataclass, replace

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.memory import map_to_read
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import Capabilities, PeerInfo, Surroundings
from stafette.kvtransfer.transports.cuda import driver as cuda_driver
from stafette.kvtransfer.transports.cuda.copier import Copier
from stafette.kvtransfer.transports.cuda.driver import CudaDriver, CudaError
from stafette.kvtransfer.transports.cuda.exports import Export, export
from stafette.kvtransfer.transports.cuda.handles import Handles
from stafette.kvtransfer.transports.cuda.region import (
    NAME,
    Opening,
    OtherGpuMemory,
    OtherHostMemory,
)
from stafette.kvtransfer.transports.same_host.config import SameHostConfig
from stafette.kvtransfer.transports.same_host.opened import Opened
from stafette.kvtransfer.transports.same_host.owner import SameHostTransport, Shown
from stafette.kvtransfer.transports.same_host.truth import Truth

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaIpcConfig:
    threads: int = 2  # for the jobs with one peer: so many streams
    part_bytes: int = 64 << 20  # queued at a time; a cancel waits for two of them
    open_timeout_s: float = 5.0  # for a peer's answer about a region

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidValue("cuda_ipc.threads", self.threads, "must be at least 1")
        if self.part_bytes < 4 << 10:
            raise InvalidValue("cuda_ipc.part_bytes", self.part_bytes, "must be at least 4096")
        if not self.open_timeout_s > 0:
            raise InvalidValue("cuda_ipc.open_timeout_s", self.open_timeout_s, "must be above 0")


class CudaIpcTransport(SameHostTransport):
    name = NAME
    # Expectations: a copy engine over NVLink, and what queueing and polling take.
    capabilities = Capabilities(
        reads_from=frozenset({"cuda", "host"}),
        reads_into=frozenset({"cuda", "host"}),
        same_host=True,
        setup_us=50.0,
        gb_per_s=100.0,
    )

    def __init__(
        self,
        surroundings: Surroundings,
        config: CudaIpcConfig = CudaIpcConfig(),
        driver: CudaDriver | None = None,
    ) -> None:
        threads, timeout_s = config.threads, config.open_timeout_s
        base = SameHostConfig(inline_bytes=0, threads=threads, open_timeout_s=timeout_s)
        super().__init__(surroundings, base)
        self._driver = cuda_driver.load() if driver is None else driver
        self._handles = Handles(self._driver)
        self._copier = Copier(self._driver, config.part_bytes)
        self._exports: dict[tuple[str, int], Export] = {}

    def endpoint(self) -> object:
        return None  # the control connection leads to all that is needed

    def attach(self, region: LocalRegion) -> object:
        version = super().attach(region)
        exported = self._exports.get((region.name, region.info.generation))
        return version if exported is None else [version, exported.pack()]

    def detach(self, region: LocalRegion) -> None:
        super().detach(region)
        self._exports.pop((region.name, region.info.generation), None)

    def unreachable(self, peer: PeerInfo, remote: RegionInfo, local: LocalRegion) -> str:
        match remote.hints.get(self.name):
            case [version, packed]:
                bare = replace(remote, hints={self.name: version})
                why_not = super().unreachable(peer, bare, local)
                return why_not or self._apart(packed, local)
        if remote.kind != "cuda" and local.info.kind != "cuda":
            return "neither region is a GPU's memory"
        return super().unreachable(peer, remote, local)

    def close(self) -> None:
        super().close()
        try:
            if self._copier.close():
                self._driver.close()
            else:
                _log.error("copies still run: the GPUs' contexts are left as they are")
        except CudaError as error:
            _log.error("not everything was given back: %s", error)

    def _show(self, region: LocalRegion) -> Shown | None:
        if region.info.kind != "cuda":
            return _show_host(region)
        try:
            found = export(self._driver, region)
        except CudaError as error:
            _log.warning("region %s cannot be read by other processes: %s", region.name, error)
            return None
        self._exports[region.name, region.info.generation] = found
        return Shown(0, [])

    def _not_shown(self, peer: PeerInfo, remote: RegionInfo) -> str:
        if remote.kind == "cuda":
            return f"region {remote.name} could not be exported: the log of {peer.name} says why"
        return f"region {remote.name} is not SharedMemory, which alone others can map"

    def _apart(self, packed: object, local: LocalRegion) -> str:
        """Return why our GPU does not read the one that a region is on."""
        try:
            uuid = Export.read(packed).uuid
        except MalformedMessage as error:
            return str(error)
        uuids, ours = self._driver.uuids, local.info.device
        if local.info.kind != "cuda" or uuid not in uuids or uuid == uuids[ours]:
            return ""  # a GPU that we do not see may be read all the same
        theirs = uuids.index(uuid)
        if self._driver.can_access(ours, theirs):
            return ""
        return f"GPU {ours} does not read GPU {theirs} directly"

    def _opened(self, peer: PeerInfo, info: RegionInfo, truth: Truth, shown: Shown) -> Opened:
        if info.kind == "host":
            (fd,) = shown.fds
            memory = map_to_read(fd, info.nbytes)
            return OtherHostMemory(peer.name, info, truth, self._copier, memory)
        match info.hints.get(self.name):
            case [_, packed]:
                found = Export.read(packed)
                found.check(info.nbytes)
                opening = Opening(found, self._handles, self._near(found.uuid))
                return OtherGpuMemory(peer.name, info, truth, self._copier, opening)
        raise MalformedMessage("hint", "[version, exported memory]")

    def _near(self, uuid: bytes) -> int:
        """Return the device of ours that reads a GPU best: that GPU, if we see it."""
        return self._driver.uuids.index(uuid) if uuid in self._driver.uuids else 0


def _show_host(region: LocalRegion) -> Shown | None:
    return None if region.shared is None else Shown(0, [os.dup(region.shared.fd)])
