"""Disks that are full, slow, torn off or lying: requests go on, and what was wrong is counted."""

import errno
import os
import resource
import subprocess
import threading
import time

import pytest

from stafette.kvtransfer.tiers.job import Outcome
from stafette.kvtransfer.tiers.positional import Syscalls

LETTERS = [chr(ord("a") + i) for i in range(26)]


class Trouble(Syscalls):
    """Does what it should, unless it was told otherwise."""

    def __init__(self):
        self.blocks_fd = None
        self.write_error = 0  # of blocks
        self.read_error = 0
        self.bad_offsets = set()  # that cannot be read
        self.most_bytes = None  # that one call moves
        self.hold = threading.Event()  # reads wait for it
        self.hold.set()
        self.hold_writes = threading.Event()
        self.hold_writes.set()
        self.calls = 0  # reads
        self.writes = 0

    def open(self, path, flags):
        fd = super().open(path, flags & ~os.O_DIRECT)
        if path.name == "blocks":
            self.blocks_fd = fd
        return fd

    def preadv(self, fd, buffers, offset):
        if fd == self.blocks_fd:
            self.calls += 1
            assert self.hold.wait(30)
            end = offset + sum(buffer.nbytes for buffer in buffers)
            if self.read_error or any(offset <= bad < end for bad in self.bad_offsets):
                raise OSError(self.read_error or errno.EIO, "trouble")
        return super().preadv(fd, self._some(buffers), offset)

    def pwritev(self, fd, buffers, offset):
        if fd == self.blocks_fd:
            self.writes += 1
            assert self.hold_writes.wait(30)
        if fd == self.blocks_fd and self.write_error:
            raise OSError(self.write_error, os.strerror(self.write_error))
        return super().pwritev(fd, self._some(buffers), offset)

    def _some(self, buffers):
        """Return the beginning of the buffers, of at most `most_bytes`."""
        left, some = self.most_bytes, []
        for buffer in buffers if left is not None else ():
            some.append(buffer[:left])
            left -= some[-1].nbytes
            if not left:
                return some
        return some or buffers


def fill(rig, names=LETTERS):
    for name in names:
        assert rig.put(name) == ["DONE"]
        rig.settle()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_disk_that_takes_no_more_is_switched_off_and_requests_go_on(rigs, caplog, number):
    trouble = Trouble()
    rig = rigs(host=4, disk=64, syscalls=trouble)
    fill(rig, "abcdefgh")
    assert rig.on("disk")
    trouble.write_error = number

    fill(rig)

    disk = rig.store.stats().disk
    assert disk.off.startswith("writing failed 3 times in a row")
    assert disk.counters.errors == 3
    assert not rig.on("disk")
    assert "is off: writing failed 3 times" in caplog.text
    assert rig.get("z") == ["DONE"]
    assert rig.get("a") == ["MISSING"]


def test_single_errors_do_not_switch_a_disk_off(rigs):
    trouble = Trouble()
    rig = rigs(host=4, disk=64, syscalls=trouble)
    for number, letter in enumerate(LETTERS):
        trouble.write_error = errno.EIO if number % 3 else 0
        rig.put(letter)
        rig.settle()

    stats = rig.store.stats().disk

    assert stats.counters.errors > 10
    assert not stats.off
    assert len(rig.on("disk") | rig.on("host")) == 26 - stats.counters.errors


def test_block_that_cannot_be_read_costs_only_itself(rigs):
    trouble = Trouble()
    rig = rigs(host=128, disk=128, syscalls=trouble, disk_write="arrival")
    names = [f"{i:02}" for i in range(8)]
    rig.put(*names)
    rig.settle()
    place = rig.store._shared.disk.cache.get(b"03".ljust(16, b"\0")).slot
    trouble.bad_offsets = {place * rig.block_bytes}
    for name in names:
        rig.store._shared.host.cache.remove(name.encode().ljust(16, b"\0"))

    outcomes = rig.get(*names)

    assert outcomes == ["DONE"] * 3 + ["FAILED"] + ["DONE"] * 4
    assert not rig.store.stats().disk.off
    rig.put("03", parents=[b"02".ljust(16, b"\0")])


def test_disk_that_cannot_be_read_is_switched_off(rigs):
    trouble = Trouble()
    rig = rigs(host=4, disk=64, syscalls=trouble)
    fill(rig)
    trouble.read_error = errno.EIO

    outcomes = [rig.get(letter)[0] for letter in "abcdef"]

    assert outcomes == ["FAILED"] * 3 + ["MISSING"] * 3
    assert rig.store.stats().disk.off


def test_reads_and_writes_that_stop_half_way_go_on(rigs):
    trouble = Trouble()
    trouble.most_bytes = 1000
    rig = rigs(host=4, disk=64, syscalls=trouble)
    fill(rig)

    for letter in LETTERS:
        assert rig.get(letter) == ["DONE"]
    assert rig.store.stats().disk.counters.errors == 0


def test_disk_that_hangs_is_switched_off_and_nobody_waits_for_it(rigs):
    trouble = Trouble()
    rig = rigs(host=4, disk=64, syscalls=trouble, disk_stall_s=0.2, onboard_timeout_s=0.1)
    fill(rig)
    trouble.hold.clear()

    assert rig.get("a") == ["TIMED_OUT"]
    deadline = time.monotonic() + 10
    while not rig.store.stats().disk.off and time.monotonic() < deadline:
        time.sleep(0.01)

    assert rig.store.stats().disk.off == "a call took longer than 0.2 s"
    assert rig.where("b") == []
    assert rig.put("n") == ["DONE"]
    trouble.hold.set()  # what comes that late is not used


def test_store_with_a_disk_that_hangs_closes_in_time(tmp_path, tools):
    trouble = Trouble()
    config = tools.config_of(
        4, 64, tmp_path, disk_threads=1, close_timeout_s=0.5, onboard_timeout_s=0.1
    )
    rig = tools.Rig(config, syscalls=trouble)
    fill(rig)
    trouble.hold.clear()
    job, _ = rig.onboard(["a"])

    began = time.monotonic()
    rig.store.close()

    assert time.monotonic() - began < 5
    assert job.done
    trouble.hold.set()


def test_disk_that_cannot_be_opened_is_no_disk(tmp_path, tools, caplog):
    (tmp_path / "file").write_text("not a folder")

    rig = tools.Rig(tools.config_of(4, 64, tmp_path / "file"))

    assert rig.put("a") == ["DONE"]
    assert rig.store.stats().disk.counters.errors == 1
    assert "cannot be opened" in rig.store.stats().disk.off
    assert "is off: it cannot be opened" in caplog.text
    rig.store.clear()
    rig.store.close()


def test_file_size_limit_of_the_process_switches_the_disk_off(rigs):
    rig = rigs(host=4, disk=64, disk_preallocate=False)
    fill(rig, "abcdef")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * rig.block_bytes, hard))
    try:
        fill(rig)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert "File too large" in rig.store.stats().disk.off
    assert rig.get("z") == ["DONE"]


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)])
    if done.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_file_system_that_is_too_small_for_the_tier_is_found_out_at_the_start(tiny_disk, tools):
    rig = tools.Rig(tools.config_of(4, 1000, tiny_disk))

    assert "No space left on device" in rig.store.stats().disk.off
    assert rig.put("a") == ["DONE"]
    rig.store.close()


def test_file_system_that_fills_up_switches_the_disk_off(tiny_disk, tools):
    rig = tools.Rig(tools.config_of(4, 1000, tiny_disk, disk_preallocate=False))
    names = [f"{i:03}" for i in range(100)]

    for name in names:
        assert rig.put(name, parents=[bytes(16)]) == ["DONE"]
        rig.settle()

    disk = rig.store.stats().disk
    assert "No space left on device" in disk.off
    assert disk.counters.stored > 30
    assert rig.get("099") == ["DONE"]
    assert rig.store.lookup([b"000".ljust(16, b"\0")]).tiers == ()
    rig.check_books()
    rig.store.close()


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_block_that_was_being_read_when_all_was_cleared_is_not_kept(rigs):
    trouble = Trouble()
    rig = rigs(host=4, disk=64, syscalls=trouble)
    fill(rig)
    trouble.hold.clear()
    job, slots = rig.onboard(["a"])
    until(lambda: trouble.calls)

    rig.store.clear()
    trouble.hold.set()
    rig.settle()

    assert job.outcomes == (Outcome.CANCELLED,)
    assert not rig.memory[slots].any()
    assert rig.where("a") == []


def test_block_that_was_being_written_when_all_was_cleared_is_not_kept(tmp_path, tools):
    trouble = Trouble()
    config = tools.config_of(4, 64, tmp_path, disk_write="arrival")
    rig = tools.Rig(config, syscalls=trouble)
    trouble.hold_writes.clear()
    rig.put("a")
    until(lambda: trouble.writes)

    rig.store.clear()
    trouble.hold_writes.set()
    rig.check_books()

    assert rig.where("a") == []
    rig.store.close()
    again = tools.Rig(config)
    assert not again.on("disk")
    again.store.close()


def test_cancelled_request_does_not_read(rigs):
    trouble = Trouble()
    rig = rigs(host=4, disk=64, syscalls=trouble, disk_threads=1)
    fill(rig)
    trouble.hold.clear()
    busy, _ = rig.onboard(["a"])
    while not trouble.calls:
        time.sleep(0.001)
    job, slots = rig.onboard(["b"])

    job.cancel()
    assert job.outcomes == (Outcome.CANCELLED,)
    trouble.hold.set()
    rig.settle()

    assert busy.outcomes == (Outcome.DONE,)
    assert trouble.calls == 1
    assert not rig.memory[slots].any()
