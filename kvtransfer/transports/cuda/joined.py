"""A GPU's memory that several processes of one engine share: made by one, registered by another.

The ranks of a tensor-parallel engine each have a pool on a GPU of their own. The process that has
the transfer agent joins them: it reads and writes there, and tells peers the maker's export, for
what was opened by a handle cannot be exported once more.

Tested on a double of the driver's library; not run on GPUs.
"""

from dataclasses import dataclass

from stafette.kvtransfer.buffers import GpuMemory
from stafette.kvtransfer.transports.cuda import driver as cuda_driver
from stafette.kvtransfer.transports.cuda.driver import CudaDriver
from stafette.kvtransfer.transports.cuda.exports import Export, export_at


@dataclass(frozen=True, slots=True)
class Shared:
    """What the maker tells: plain values."""

    export: list[object]
    nbytes: int


def share(address: int, nbytes: int, device: int, driver: CudaDriver | None = None) -> Shared:
    """Return by what another process of ours joins memory that this one has made."""
    driver = driver or cuda_driver.load()
    return Shared(export_at(driver, address, device).pack(), nbytes)


def join(shared: Shared, driver: CudaDriver | None = None) -> GpuMemory:
    """Open it, for as long as this process lives: its maker may not free it before."""
    driver = driver or cuda_driver.load()
    export = Export.read(shared.export)
    export.check(shared.nbytes)
    device = driver.uuids.index(export.uuid)
    address = driver.open(export.handle, device) + export.offset
    return GpuMemory(address, shared.nbytes, device, export.pack())
