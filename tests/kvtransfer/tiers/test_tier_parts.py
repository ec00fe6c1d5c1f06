"""Small parts of the tiers: configs, copies, positional reads, the form of the index."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.tiers import disk_format
from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig, num_blocks
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.kvtransfer.tiers.positional import Syscalls, move, runs
from stafette.kvtransfer.tiers.stats import fragmentation

KEY = bytes(range(16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HostConfig(), r"host.capacity_bytes, num_blocks = \(0, 0\): exactly one"),
        (lambda: HostConfig(num_blocks=1, capacity_bytes=1), "exactly one of the two"),
        (lambda: HostConfig(num_blocks=1, pin_share=1.0), "host.pin_share = 1.0"),
        (lambda: HostConfig(num_blocks=1, policy="lruu"), "host.policy = 'lruu'.*nearest is lru"),
        (lambda: DiskConfig(folder="d"), "disk.capacity_bytes, num_blocks"),
        (lambda: DiskConfig(folder="d", num_blocks=1, write="never"), "eviction or arrival"),
        (lambda: DiskConfig(folder="d", num_blocks=1, admission="no"), "disk.admission = 'no'"),
        (lambda: DiskConfig(folder="d", num_blocks=1, stall_s=0), "disk.stall_s = 0"),
        (lambda: DiskConfig(folder="d", num_blocks=1, max_errors=0), "disk.max_errors = 0"),
        (lambda: TiersConfig(host=HostConfig(num_blocks=1), disk_threads=0), "tiers.disk_threads"),
    ],
)
def test_wrong_setting_is_named(make, message):
    with pytest.raises(InvalidValue, match=message):
        make()


def test_capacity_in_bytes_becomes_whole_blocks():
    assert num_blocks(HostConfig(capacity_bytes=10_000), 4096) == 2
    assert num_blocks(HostConfig(num_blocks=7), 4096) == 7


@pytest.mark.parametrize(
    ("block_bytes", "host_blocks", "batch"),
    [(1 << 20, 10_000, 16), (64 << 20, 10_000, 1), (1 << 10, 1 << 20, 512), (1 << 10, 64, 2)],
)
def test_batches_are_neither_too_large_for_the_host_nor_for_one_call(
    block_bytes, host_blocks, batch
):
    config = TiersConfig(host=HostConfig(num_blocks=host_blocks))

    assert config.batch_blocks(block_bytes, host_blocks) == batch


def test_scattered_blocks_are_copied_pair_by_pair():
    memory = np.arange(40, dtype=np.uint8).reshape(10, 4)
    device, pool = ArrayBlocks(memory.copy()), np.zeros((5, 4), np.uint8)

    device.copy_out([7, 2], pool, [1, 4])
    assert (pool[[1, 4]] == memory[[7, 2]]).all()
    assert not pool[[0, 2, 3]].any()
    device.copy_in([0, 9], pool, [4, 1])

    assert (device._blocks[[0, 9]] == memory[[2, 7]]).all()
    assert (device._blocks[1:9] == memory[1:9]).all()


@pytest.mark.parametrize(
    "blocks", [np.zeros(4, np.uint8), np.zeros((2, 2)), np.zeros((4, 4), np.uint8)[:, :2]]
)
def test_memory_that_is_no_table_of_bytes_is_refused(blocks):
    with pytest.raises(InvalidValue, match="must be contiguous uint8"):
        ArrayBlocks(blocks)


@given(st.lists(st.integers(0, 30)))
def test_runs_cover_all_numbers_and_are_as_long_as_can_be(numbers):
    found = list(runs(numbers))

    covered = [numbers[first + i] for first, count in found for i in range(count)]
    assert covered == numbers
    for first, count in found:
        assert numbers[first : first + count] == list(range(numbers[first], numbers[first] + count))
    for (first, count), (after, _) in zip(found, found[1:], strict=False):
        assert numbers[after] != numbers[first + count - 1] + 1


def test_file_that_ends_early_is_an_error(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"abc")
    fd = os.open(path, os.O_RDWR)

    with pytest.raises(OSError, match="fewer bytes than there should be"):
        move(Syscalls().preadv, fd, [memoryview(bytearray(2)), memoryview(bytearray(2))], 0)
    os.close(fd)


@pytest.mark.parametrize(
    ("free", "share"), [([], 0.0), ([5], 0.0), ([3, 1, 2], 0.0), ([0, 1, 5, 6, 7, 9], 0.5)]
)
def test_fragmentation_is_what_lies_outside_of_the_longest_run(free, share):
    assert fragmentation(np.array(free, np.int64)) == share


def test_head_comes_back_as_it_was():
    head = disk_format.new_head(4096, "llama")

    assert disk_format.read_head(disk_format.pack_head(head)) == head
    assert disk_format.renewed(head).epoch != head.epoch


def test_head_of_another_size_or_model_differs_by_name():
    ours = disk_format.new_head(4096, "llama")

    assert disk_format.difference(ours, disk_format.renewed(ours)) is None
    other = disk_format.new_head(512, "llama")
    assert disk_format.difference(ours, other) == ("block_bytes", "4096", "512")
    field, _, _ = disk_format.difference(ours, disk_format.new_head(4096, "qwen"))
    assert field == "model or layout (digest)"


def test_record_is_found_in_its_slot():
    head = disk_format.new_head(4096, "")
    record = disk_format.Record(KEY, ROOT, (1 << 64) - 1, 7)

    scan = disk_format.scan(disk_format.BLANK * 3 + disk_format.pack_record(record, head), head)

    assert scan.records == {3: record}
    assert not scan.damaged


def test_record_of_an_earlier_epoch_is_void():
    head = disk_format.new_head(4096, "")
    data = disk_format.pack_record(disk_format.Record(KEY, ROOT, 1, 1), head)

    assert disk_format.scan(data, disk_format.renewed(head)) == disk_format.Scan({}, 0)


@pytest.mark.parametrize("place", range(disk_format.RECORD_BYTES))
def test_no_byte_of_a_record_can_change_unseen(place):
    head = disk_format.new_head(4096, "")
    data = bytearray(disk_format.pack_record(disk_format.Record(KEY, ROOT, 5, 6), head))
    data[place] ^= 0x10

    assert disk_format.scan(bytes(data), head).records == {}
