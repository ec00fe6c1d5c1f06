"""The two files of a disk tier: opened, locked, read and written. What fails is an OSError."""

import fcntl
import logging
import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stafette.kvtransfer.memory import Bytes
from stafette.kvtransfer.tiers import disk_format
from stafette.kvtransfer.tiers.config import DiskConfig
from stafette.kvtransfer.tiers.disk_format import HEAD_BYTES, RECORD_BYTES, Head, Record, Scan
from stafette.kvtransfer.tiers.errors import TierInUse, TierMismatch
from stafette.kvtransfer.tiers.positional import Buffer, Syscalls, move, runs

_log = logging.getLogger(__name__)
_PAGE = 4096
_LOCK_PAUSE_S = 0.05


class DiskFiles:
    """Any thread may read and write, as long as no two work on the same slot."""

    def __init__(
        self, config: DiskConfig, head: Head, num_slots: int, syscalls: Syscalls | None = None
    ) -> None:
        """`head` is what a new index gets; one that is there keeps its own, if it is compatible."""
        self.head = head
        self.num_slots = num_slots
        self.direct = False
        self.found = Scan({}, 0)  # at the start
        self._config = config
        self._calls = syscalls or Syscalls()
        self._used = bytearray(num_slots)  # 1 where the record on disk may not be blank
        self._index = self._blocks = -1
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def read(self, slots: Sequence[int], into: Sequence[Bytes]) -> None:
        """Read whole blocks; those that lie one after the other come in one go."""
        for first, count in runs(slots):
            rows = [row.data for row in into[first : first + count]]
            move(self._calls.preadv, self._blocks, rows, slots[first] * self.head.block_bytes)

    def write(self, head: Head, blocks: Sequence[Bytes], records: dict[int, Record]) -> None:
        """Write blocks into slots, then their records: one that is half written has none.

        `head` is ours of before; when it was cleared since, the records are void.
        """
        slots = list(records)
        for slot in slots:
            self.blank(slot)
        for first, count in runs(slots):
            rows = [block.data for block in blocks[first : first + count]]
            move(self._calls.pwritev, self._blocks, rows, slots[first] * head.block_bytes)
        self._sync(self._blocks)
        for slot, record in records.items():
            self._used[slot] = 1
            self._write_record(slot, disk_format.pack_record(record, head))
        self._sync(self._index)

    def blank(self, slot: int) -> None:
        """Let a restart find nothing in a slot."""
        if self._used[slot]:
            self._write_record(slot, disk_format.BLANK)
            self._used[slot] = 0

    def clear(self) -> None:
        """Let a restart find nothing at all."""
        self._write_head(disk_format.renewed(self.head))

    def close(self) -> None:
        for fd in (self._index, self._blocks):
            if fd >= 0:
                os.close(fd)
        self._index = self._blocks = -1

    def _open(self) -> None:
        folder = self._config.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._index = self._calls.open(folder / "index", os.O_RDWR | os.O_CREAT)
        self._lock()
        found = self._find_head()
        self._blocks = self._open_blocks(folder / "blocks")
        if found is None:
            os.ftruncate(self._index, 0)
            self._write_head(self.head)
        else:
            self.head = found
            self.found = self._scan()
        self._make_room()

    def _lock(self) -> None:
        """Wait for the worker before to die; never share the folder with one that lives."""
        deadline = time.monotonic() + self._config.lock_timeout_s
        while True:
            try:
                return fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    folder = str(self._config.folder)
                    raise TierInUse(folder, self._config.lock_timeout_s) from None
                time.sleep(_LOCK_PAUSE_S)

    def _find_head(self) -> Head | None:
        """Return the head of an index with which we can go on, None to begin anew."""
        path = str(self._config.folder / "index")
        data = os.pread(self._index, HEAD_BYTES, 0)
        if not data:
            return None
        if not disk_format.is_ours(data):
            raise TierMismatch(path, "content", "a disk tier's", "something else")
        head = disk_format.read_head(data)
        if head is None:
            _log.warning("the head of %s is damaged: the disk tier begins anew", path)
        elif (difference := disk_format.difference(self.head, head)) is not None:
            self._replace(path, *difference)
            return None
        return head

    def _replace(self, path: str, field: str, ours: str, found: str) -> None:
        if not self._config.replace:
            raise TierMismatch(path, field, ours, found)
        _log.warning("%s has %s %s, not %s: it is emptied", path, field, found, ours)

    def _open_blocks(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT
        if self._config.direct and self.head.block_bytes % _PAGE == 0:
            try:
                fd = self._calls.open(path, flags | os.O_DIRECT)
            except OSError as error:
                _log.info("%s is used through the page cache: %s", path, error)
            else:
                self.direct = _reads_directly(fd)
                if self.direct:
                    return fd
                os.close(fd)
        return self._calls.open(path, flags)

    def _scan(self) -> Scan:
        wanted = min(os.fstat(self._index).st_size - HEAD_BYTES, self.num_slots * RECORD_BYTES)
        data = np.empty(max(0, wanted) // RECORD_BYTES * RECORD_BYTES, np.uint8)
        move(self._calls.preadv, self._index, [data.data] if data.size else [], HEAD_BYTES)
        table = data.reshape(-1, RECORD_BYTES)
        self._used[: len(table)] = table.any(axis=1).tobytes()
        return disk_format.scan(data.tobytes(), self.head)

    def _make_room(self) -> None:
        size = self.num_slots * self.head.block_bytes
        os.ftruncate(self._index, HEAD_BYTES + self.num_slots * RECORD_BYTES)
        os.ftruncate(self._blocks, size)
        if self._config.preallocate:
            self._calls.allocate(self._blocks, size)

    def _write_head(self, head: Head) -> None:
        move(self._calls.pwritev, self._index, [Buffer(disk_format.pack_head(head))], 0)
        self._sync(self._index)
        self.head = head

    def _write_record(self, slot: int, data: bytes) -> None:
        offset = HEAD_BYTES + slot * RECORD_BYTES
        move(self._calls.pwritev, self._index, [Buffer(data)], offset)

    def _sync(self, fd: int) -> None:
        if self._config.sync:
            self._calls.sync(fd)


def _reads_directly(fd: int) -> bool:
    """Some file systems open a file for direct access, and then refuse to read."""
    try:
        os.preadv(fd, [mmap.mmap(-1, _PAGE)], 0)
    except OSError:
        return False
    return True
