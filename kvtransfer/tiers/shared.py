"""What the parts of a store share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Condition
from typing import TypeVar

from stafette.kvtransfer.tiers.cache import Entry
from stafette.kvtransfer.tiers.demotion import Demoter
from stafette.kvtransfer.tiers.device import DeviceBlocks
from stafette.kvtransfer.tiers.disk_tier import DiskTier
from stafette.kvtransfer.tiers.host_tier import HostTier
from stafette.kvtransfer.tiers.machinery import Lanes, Machinery
from stafette.kvtransfer.tiers.stats import Calls

Item = TypeVar("Item")
Overwrite = Callable[[Sequence[int]], None]


@dataclass(slots=True, eq=False)
class Shared:
    lock: Condition  # notified when host slots come free; who holds it does no I/O and no copy
    host: HostTier
    disk: DiskTier | None
    demoter: Demoter
    device: DeviceBlocks
    copies: Lanes  # between the device and the host
    batch: int  # blocks that are moved in one go
    machinery: Machinery
    calls: Calls = field(default_factory=Calls)
    generation: int = 0  # counts what was cleared: what is older must not be found again
    num_kept: int = 0  # blocks that were pinned from outside
    on_overwrite: Overwrite | None = None  # hears of host rows before they get other content

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        return (items[i : i + self.batch] for i in range(0, len(items), self.batch))

    def overwrite(self, rows: Sequence[int]) -> None:
        if self.on_overwrite is not None and rows:
            self.on_overwrite(rows)

    def unpin(self, entries: Sequence[Entry]) -> None:
        """Release host blocks. Takes the lock."""
        with self.lock:
            for entry in entries:
                self.host.cache.unpin(entry)
            self.lock.notify_all()
