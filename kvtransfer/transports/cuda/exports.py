"""What peers are told of a region in a GPU's memory, so that they can open it."""

from dataclasses import dataclass

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.strict import octets, whole
from stafette.kvtransfer.transports.cuda.driver import HANDLE_BYTES, UUID_BYTES, CudaDriver

_U63_END = 1 << 63


@dataclass(frozen=True, slots=True)
class Export:
    handle: bytes  # of the allocation
    nbytes: int  # of the allocation
    offset: int  # of the region's first byte in it
    uuid: bytes  # of the GPU

    def pack(self) -> list[object]:
        return [self.handle, self.nbytes, self.offset, self.uuid]

    @classmethod
    def read(cls, value: object) -> "Export":
        match value:
            case [handle, nbytes, offset, uuid]:
                found = cls(
                    octets(handle, "handle", HANDLE_BYTES),
                    whole(nbytes, "allocated bytes", _U63_END),
                    whole(offset, "offset", _U63_END),
                    octets(uuid, "uuid", UUID_BYTES),
                )
                if (len(found.handle), len(found.uuid)) == (HANDLE_BYTES, UUID_BYTES):
                    return found
        raise MalformedMessage("exported memory", "[64 bytes, size, offset, 16 bytes]")

    def check(self, nbytes: int) -> None:
        """Raise MalformedMessage unless a region of so many bytes lies in the allocation.

        To read beside it would cost us our CUDA context, and all that is in it.
        """
        if self.offset + nbytes > self.nbytes:
            where = f"bytes {self.offset}..{self.offset + nbytes}"
            raise MalformedMessage(where, f"some within the allocation of {self.nbytes}")


def export(driver: CudaDriver, region: LocalRegion) -> Export:
    """Return what shows a region; CudaError where its memory cannot be shared."""
    if region.exported is not None:  # by the process that has made it
        return Export.read(region.exported)
    return export_at(driver, region.address, region.info.device)


def export_at(driver: CudaDriver, address: int, device: int) -> Export:
    """Return what shows the memory of this process that begins at an address."""
    base, nbytes = driver.allocation(address, device)
    handle = driver.export(base, device)
    return Export(handle, nbytes, address - base, driver.uuids[device])
