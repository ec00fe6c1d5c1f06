"""The tiers of a mock worker: the store of production, on a clock that is passed in.

Where a block lies, which one goes and what waits is decided by the same code. A copy, a read and a
write take the time that their bytes need, one after the other in each lane; no byte is moved, and
a block takes one byte of memory, and none on a disk.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition

from stafette.kvtransfer.connectors.tiered import TieredConfig, TieredConnector
from stafette.kvtransfer.memory import Bytes
from stafette.kvtransfer.tiers.config import DiskConfig, TiersConfig, num_blocks
from stafette.kvtransfer.tiers.device import DeviceBlocks, Rows
from stafette.kvtransfer.tiers.disk_files import DiskFiles
from stafette.kvtransfer.tiers.disk_format import Head, Record, Scan
from stafette.kvtransfer.tiers.host_tier import Emit
from stafette.kvtransfer.tiers.job import BlockJob
from stafette.kvtransfer.tiers.lane import Work
from stafette.kvtransfer.tiers.machinery import Expires, Lanes, Machinery
from stafette.kvtransfer.tiers.store import TieredStore
from stafette.workers.mocker.agenda import Agenda, Appointment
from stafette.workers.mocker.config import MockerConfig

# What is to happen, the time, and what is called when something is to happen sooner than before.
Timing = tuple[Agenda, Callable[[], float], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class _Task:
    work: Work
    num_blocks: int
    urgent: bool


class _Lane:
    """Does one thing after the other. It is done when its time is over, all at once."""

    def __init__(self, machinery: "ModelledMachinery", name: str, limits: tuple[int, int]) -> None:
        self.limits = limits
        self.name = name
        self.ends_at: float | None = None  # of what is being done; None: nothing is
        self._machinery = machinery
        self._queues: tuple[deque[_Task], ...] = (deque(), deque())
        self._waiting = [0, 0]  # blocks
        self._task: _Task | None = None
        self._end: Appointment | None = None
        self._closed = False

    @property
    def num_waiting(self) -> tuple[int, int]:
        return self._waiting[0], self._waiting[1]

    def submit(self, work: Work, num_blocks: int, urgent: bool) -> bool:
        queue = 0 if urgent else 1
        over = self._waiting[queue] + num_blocks > self.limits[queue]
        if self._closed or (over and self._waiting[queue]):
            return False
        self._queues[queue].append(_Task(work, num_blocks, urgent))
        self._waiting[queue] += num_blocks
        self._begin(self._machinery.now())
        return True

    def drain(self, timeout_s: float) -> bool:
        return self._task is None

    def close(self, timeout_s: float) -> bool:
        """What waits is not done: the worker is gone."""
        self._closed = True
        if self._end is not None:
            self._end.cancel()
        return True

    def finish(self) -> None:
        """Do at its end what was begun, then begin the next."""
        task, at = self._task, self.ends_at
        assert task is not None, "something was being done"
        assert at is not None, "and its end is known"
        if self._end is not None:
            self._end.cancel()
        self.ends_at = None  # who waits meanwhile does not wait for us
        free_at = self._machinery.do(task.work, at)
        self._task = None
        self._begin(free_at)

    def _begin(self, now: float) -> None:
        if self._task is not None:
            return
        for number, queue in enumerate(self._queues):
            if queue:
                self._task = task = queue.popleft()
                self._waiting[number] -= task.num_blocks
                self.ends_at = now + self._machinery.seconds(self.name, task)
                self._end = self._machinery.at(self.ends_at, self.finish)
                return


class _Expiry:
    def __init__(self, machinery: "ModelledMachinery") -> None:
        self._machinery = machinery
        self._ends: dict[BlockJob, Appointment] = {}

    def watch(self, job: BlockJob) -> None:
        self._ends[job] = self._machinery.at(job.deadline, job.expire)
        job.on_done(self._forget)

    def cancel_all(self) -> None:
        for job in list(self._ends):
            job.cancel()

    def close(self) -> None:
        for end in self._ends.values():
            end.cancel()

    def _forget(self, job: BlockJob) -> None:
        self._ends.pop(job).cancel()


class _NoFiles(DiskFiles):
    """A disk without a file: what was written there once is there, unharmed."""

    def __init__(self, head: Head) -> None:
        self.head, self.direct, self.found = head, True, Scan({}, 0)

    def read(self, slots: Sequence[int], into: Sequence[Bytes]) -> None:
        pass

    def write(self, head: Head, blocks: Sequence[Bytes], records: dict[int, Record]) -> None:
        pass

    def blank(self, slot: int) -> None:
        pass

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


class ModelledMachinery(Machinery):
    def __init__(self, timing: Timing, config: MockerConfig) -> None:
        super().__init__()
        self._agenda, self._clock, self._wake = timing
        self._speed = config.tier_speed
        self._block_bytes = config.block_bytes
        self._speedup = config.speedup
        self._lanes: list[_Lane] = []
        self._at: float | None = None  # the time of the work that is being done

    def now(self) -> float:
        return self._clock() if self._at is None else self._at

    def wait(self, changed: Condition, seconds: float) -> bool:
        """Let the lane go on that is due next; who waits is so much later."""
        until = self.now() + seconds
        due = [(lane.ends_at, lane) for lane in self._lanes if lane.ends_at is not None]
        ends_at, lane = min(due, key=lambda each: each[0], default=(until, None))
        if lane is None or ends_at > until:
            self._at = until
            return False
        self._at = max(self.now(), ends_at)
        lane.finish()
        return True

    def do(self, work: Work, at: float) -> float:
        """Do it as of that time; return when it is over: it may have waited."""
        before, self._at = self._at, at
        try:
            work()
            return self.now()
        finally:
            self._at = before

    def at(self, when: float, action: Callable[[], None]) -> Appointment:
        made = self._agenda.at(when, action)
        self._wake()
        return made

    def seconds(self, lane: str, task: _Task) -> float:
        nbytes = task.num_blocks * self._block_bytes
        return self._speed.seconds(lane, nbytes, task.urgent) / self._speedup

    def lane(self, name: str, num_threads: int, limits: tuple[int, int]) -> Lanes:
        self._lanes.append(_Lane(self, name, limits))
        return self._lanes[-1]

    def expiry(self, look: Callable[[], None]) -> Expires:
        return _Expiry(self)

    def disk_files(self, config: DiskConfig, head: Head, num_slots: int) -> DiskFiles:
        return _NoFiles(head)


class _NoBlocks(DeviceBlocks):
    def __init__(self, count: int) -> None:
        self.num_blocks, self.block_bytes = count, 1

    def copy_out(self, slots: Sequence[int], pool: Rows, rows: Sequence[int]) -> None:
        pass

    def copy_in(self, slots: Sequence[int], pool: Rows, rows: Sequence[int]) -> None:
        pass


def tiers_of(config: MockerConfig, timing: Timing, emit: Emit) -> TieredConnector | None:
    """Return the connector to tiers in which as many blocks fit as in real ones of that size."""
    if config.tiers is None:
        return None
    counted = _counted(config.tiers, config.block_bytes)
    machinery = ModelledMachinery(timing, config)
    connector = TieredConnector(TieredConfig(tiers=counted), clock=timing[1])
    connector.store = TieredStore(counted, _NoBlocks(config.num_blocks), emit, machinery=machinery)
    return connector


def _counted(config: TiersConfig, block_bytes: int) -> TiersConfig:
    """Return sizes in blocks of one byte."""
    host = replace(
        config.host,
        capacity_bytes=0,
        num_blocks=num_blocks(config.host, block_bytes),
        huge_pages=False,
    )
    disk = config.disk
    if disk is not None:
        size = num_blocks(disk, block_bytes)
        disk = replace(disk, capacity_bytes=0, num_blocks=size, folder=Path())
    batch_bytes = max(1, config.batch_bytes // block_bytes)
    return replace(config, host=host, disk=disk, batch_bytes=batch_bytes, save_on_close=False)
