"""The bytes of a GPU's memory, on the host: for checksums, when somebody asks for them.

Copied by torch, on a stream of its own. Was not run on a GPU.
"""

from collections.abc import Iterator
from importlib import import_module

from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.transports.cuts import Cuts
from stafette.kvtransfer.transports.two_sided.pools import DevicePool, Streams

_PART_BYTES = 16 << 20


def in_order(region: LocalRegion, extents: Extents) -> Iterator[memoryview]:
    """Return the bytes of the ranges in the list's order, part by part."""
    torch = import_module("torch")
    pool = DevicePool(region.owner, Streams().of(region.info.device))
    cuts = Cuts(extents, _PART_BYTES)
    for number in range(len(cuts)):
        part = cuts[number]
        buffer = torch.empty(part.nbytes, dtype=torch.uint8)
        pool.gather(part, buffer)
        yield buffer.numpy().data
