"""Shared memory: who may write it, where it lies, and that it goes with its last user."""

import gc
import mmap
import os

import numpy as np
import pytest

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.memory import HUGE_PAGE_BYTES, SharedMemory, map_to_read

SIZES = [1, 4096, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 4097]


@pytest.fixture(params=SIZES)
def memory(request):
    memory = SharedMemory("kv", request.param)
    yield memory
    memory.close()


def test_owner_writes_what_others_see(memory):
    seen = map_to_read(memory.fd, memory.nbytes)

    memory.array[-1] = 7

    assert len(memory.array) == len(seen) == memory.nbytes
    assert seen[-1] == 7
    assert not seen.flags.writeable


def test_nobody_else_can_map_it_to_write_or_resize_it(memory):
    for protection in (mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
        with pytest.raises(PermissionError):
            mmap.mmap(memory.fd, memory.nbytes, prot=protection)
    with pytest.raises(PermissionError):
        os.pwrite(memory.fd, b"x", 0)
    for size in (0, 2 * memory.nbytes):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)


@pytest.mark.parametrize("nbytes", SIZES[3:])
def test_large_memory_lies_where_huge_pages_can(nbytes):
    memory = SharedMemory("kv", nbytes)

    for array in (memory.array, map_to_read(memory.fd, nbytes)):
        assert array.ctypes.data % HUGE_PAGE_BYTES == 0
    memory.close()


@pytest.mark.parametrize("nbytes", SIZES)
def test_memory_in_huge_pages_is_resident_at_once_and_zero(nbytes):
    memory = SharedMemory("kv", nbytes, huge_pages=True)

    assert os.fstat(memory.fd).st_blocks * 512 >= nbytes
    assert not memory.array.any()
    memory.close()


@pytest.mark.parametrize("nbytes", SIZES)
def test_content_stays_until_the_last_array_is_gone(nbytes):
    gc.collect()
    before = num_mapped()
    memory = SharedMemory("going", nbytes)
    memory.array[:] = 5
    seen = map_to_read(memory.fd, nbytes)[: nbytes // 2 + 1]

    memory.close()
    memory.close()
    del memory

    assert num_mapped() == before + 1
    assert (seen == 5).all()
    del seen
    assert num_mapped() == before


def num_mapped() -> int:
    with open("/proc/self/maps") as maps:
        return sum("stafette-going" in line for line in maps)


def test_mapping_takes_no_descriptor_of_its_own_when_it_is_large():
    memory = SharedMemory("kv", HUGE_PAGE_BYTES)
    before = len(os.listdir("/proc/self/fd"))

    seen = map_to_read(memory.fd, HUGE_PAGE_BYTES)

    assert len(os.listdir("/proc/self/fd")) == before
    assert np.array_equal(seen, memory.array)
    memory.close()


def test_file_that_is_too_small_is_not_mapped():
    memory = SharedMemory("kv", 100)

    with pytest.raises(InvalidValue, match="at least 101 bytes"):
        map_to_read(memory.fd, 101)
    memory.close()


def test_memory_of_no_bytes_is_refused():
    with pytest.raises(InvalidValue, match="nbytes"):
        SharedMemory("kv", 0)
