"""What a store works with: a clock, threads for what takes time, files. A simulation brings others.

The store's decisions are the same with either: what lies where, what goes next, who has to wait.
"""

import time
from collections.abc import Callable
from threading import Condition
from typing import Protocol

from stafette.kvtransfer.tiers.config import DiskConfig
from stafette.kvtransfer.tiers.disk_files import DiskFiles
from stafette.kvtransfer.tiers.disk_format import Head
from stafette.kvtransfer.tiers.expiry import Expiry
from stafette.kvtransfer.tiers.job import BlockJob
from stafette.kvtransfer.tiers.lane import Lane, Work
from stafette.kvtransfer.tiers.positional import Syscalls


class Lanes(Protocol):
    """Where work waits for its turn. `limits` are blocks that may wait: urgent ones, and others."""

    limits: tuple[int, int]

    @property
    def num_waiting(self) -> tuple[int, int]: ...

    def submit(self, work: Work, num_blocks: int, urgent: bool) -> bool: ...

    def drain(self, timeout_s: float) -> bool: ...

    def close(self, timeout_s: float) -> bool: ...


class Expires(Protocol):
    """Ends jobs whose time is over."""

    def watch(self, job: BlockJob) -> None: ...

    def cancel_all(self) -> None: ...

    def close(self) -> None: ...


class Machinery:
    """That of production. `syscalls`: how files are touched."""

    def __init__(self, syscalls: Syscalls | None = None) -> None:
        self._syscalls = syscalls

    def now(self) -> float:
        return time.monotonic()

    def wait(self, changed: Condition, seconds: float) -> bool:
        """Let others work for so long, or until one of them has told; False: nobody did."""
        return changed.wait(seconds)

    def lane(self, name: str, num_threads: int, limits: tuple[int, int]) -> Lanes:
        return Lane(name, num_threads, limits)

    def expiry(self, look: Callable[[], None]) -> Expires:
        return Expiry(look)

    def disk_files(self, config: DiskConfig, head: Head, num_slots: int) -> DiskFiles:
        """Open them; OSError when that cannot be."""
        return DiskFiles(config, head, num_slots, self._syscalls)
