"""Checksums of scattered ranges: XXH3 with 128 bits over their bytes, in the list's order."""

import os
from collections.abc import Iterator

import xxhash

from stafette.kvtransfer.errors import TransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.transports import gpu_bytes
from stafette.kvtransfer.transports.same_host import plain

DIGEST_BYTES = 16


def digest(region: LocalRegion, extents: Extents) -> bytes:
    """Return the checksum of ranges that lie within a region, of any kind."""
    hasher = xxhash.xxh3_128()
    if region.info.kind == "cuda":
        for view in gpu_bytes.in_order(region, extents):
            hasher.update(view)
    elif region.memory is None:
        for part in _in_file(region, extents):
            hasher.update(part)
    else:
        for run in plain.in_order(region.memory, extents):
            hasher.update(run.data)
    return hasher.digest()


def _in_file(region: LocalRegion, extents: Extents) -> Iterator[bytes]:
    for offset, length in zip(extents.offsets.tolist(), extents.lengths.tolist(), strict=True):
        while length:
            wanted = min(length, plain.CHUNK_BYTES)
            part = os.pread(region.fd, wanted, region.address + offset)
            if not part:
                raise TransferError(f"the file of region {region.name} ends at byte {offset}")
            yield part
            offset, length = offset + len(part), length - len(part)
