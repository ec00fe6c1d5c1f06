"""The regions that an agent has registered, and what every transport tells peers of them."""

import threading
from collections.abc import Mapping
from dataclasses import replace

from stafette.kvtransfer.buffers import Shape, region_of
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.ledger import Ledger
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import Transport


class RegionTable:
    """A name that is registered again is another region: its generation is a higher one."""

    def __init__(self, ledger: Ledger, transports: Mapping[str, Transport]) -> None:
        self._ledger = ledger
        self._transports = transports
        self._regions: dict[str, LocalRegion] = {}
        self._num_registered = 0
        self._lock = threading.Lock()

    def add(self, buffer: object, name: str, block_bytes: int, layout: object) -> RegionInfo:
        with self._lock:
            if name in self._regions:
                raise InvalidValue("region", name, "is registered: deregister it first")
            self._num_registered += 1
            shape = Shape(name, block_bytes, self._num_registered, layout)
            bare = region_of(buffer, shape)
            self._ledger.add_region(name, bare.info.num_blocks)
            region = self._attach(bare)
            self._regions[name] = region
        return region.info

    def get(self, name: str) -> LocalRegion:
        region = self._regions.get(name)
        if region is None:
            known = ", ".join(self._regions) or "none"
            raise InvalidValue("region", name, f"must be a registered one; these are: {known}")
        return region

    def covering(self, extents: Extents) -> LocalRegion:
        """Return the region of the extents, which lie within it."""
        region = self.get(extents.region)
        if not extents.within(region.info.nbytes):
            remedy = f"must lie within the {region.info.nbytes} bytes of region {region.name}"
            ends = extents.offsets + extents.lengths
            raise InvalidValue("extents", f"end at {int(ends.max())}", remedy)
        return region

    def remove(self, name: str) -> None:
        """Forget a region that nobody uses any more."""
        with self._lock:
            region = self._regions.pop(name)
            for transport in self._transports.values():
                transport.detach(region)
            self._ledger.remove_region(name)

    def infos(self) -> tuple[RegionInfo, ...]:
        with self._lock:
            return tuple(region.info for region in self._regions.values())

    def _attach(self, bare: LocalRegion) -> LocalRegion:
        hints: dict[str, object] = {}
        for name, transport in self._transports.items():
            hint = transport.attach(bare)
            if hint is not None:
                hints[name] = hint
        return replace(bare, info=replace(bare.info, hints=hints))
