"""A peer's region that a GPU of ours reads, or that is read out of a GPU into our memory."""

import threading
from abc import abstractmethod
from dataclasses import dataclass

from stafette.kvtransfer.errors import TransportUnavailable
from stafette.kvtransfer.memory import Bytes
from stafette.kvtransfer.native.moving import Words
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import ReadJob
from stafette.kvtransfer.transports.cuda.copier import Copier, Way
from stafette.kvtransfer.transports.cuda.driver import CudaError, Direction
from stafette.kvtransfer.transports.cuda.exports import Export
from stafette.kvtransfer.transports.cuda.handles import Handles
from stafette.kvtransfer.transports.same_host.opened import Opened
from stafette.kvtransfer.transports.same_host.truth import Truth

NAME = "cuda_ipc"


class GpuReadable(Opened):
    """Checked before the copy and after it as every region of this host: see `Opened`."""

    quick = False

    def __init__(self, peer: str, info: RegionInfo, truth: Truth, copier: Copier) -> None:
        super().__init__(peer, info, truth, mover=None)
        self._copier = copier

    @abstractmethod
    def way(self, local: LocalRegion) -> Way:
        """Return how it comes into a region of ours."""

    def copy(self, job: ReadJob) -> bool:
        try:
            return self._copier.copy(job, self.way(job.local))
        except CudaError as error:
            raise TransportUnavailable(NAME, self.peer, str(error)) from error

    def place(self) -> Words:
        raise AssertionError("native code copies no memory of GPUs")


@dataclass(frozen=True, slots=True)
class Opening:
    export: Export
    handles: Handles
    near: int  # the device that copies to host memory


class OtherGpuMemory(GpuReadable):
    """Opened once for each of our devices that reads it."""

    def __init__(
        self, peer: str, info: RegionInfo, truth: Truth, copier: Copier, opening: Opening
    ) -> None:
        super().__init__(peer, info, truth, copier)
        self._opening = opening
        self._addresses: dict[int, int] = {}  # by device
        self._adding = threading.Lock()

    def way(self, local: LocalRegion) -> Way:
        if local.info.kind == "cuda":
            device = local.info.device
            return Way(self._address(device), Direction.DEVICE_TO_DEVICE, device)
        device = self._opening.near
        return Way(self._address(device), Direction.DEVICE_TO_HOST, device)

    def close(self) -> None:
        for device in self._addresses:
            self._opening.handles.give_back(self._opening.export.handle, device)

    def _address(self, device: int) -> int:
        with self._adding:
            address = self._addresses.get(device)
            if address is None:
                export = self._opening.export
                base = self._opening.handles.take(export.handle, device)
                address = self._addresses[device] = base + export.offset
        return address


class OtherHostMemory(GpuReadable):
    """A peer's SharedMemory, mapped here, which a GPU of ours reads."""

    def __init__(
        self, peer: str, info: RegionInfo, truth: Truth, copier: Copier, memory: Bytes
    ) -> None:
        super().__init__(peer, info, truth, copier)
        self._memory = memory

    def way(self, local: LocalRegion) -> Way:
        return Way(self._memory.ctypes.data, Direction.HOST_TO_DEVICE, local.info.device)
