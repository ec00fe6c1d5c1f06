"""What can be registered, and what is refused with its reason."""

import tempfile

import numpy as np
import pytest
import torch

from stafette.kvtransfer.buffers import FileMemory, Shape, region_of
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.memory import SharedMemory, map_to_read
from stafette.kvtransfer.regions import RegionInfo

SHAPE = Shape("kv", block_bytes=16, generation=3)


def test_array_is_registered_in_place():
    array = np.zeros((4, 16), np.float32)

    region = region_of(array, SHAPE)
    region.memory[:4] = np.frombuffer(np.float32(1.5).tobytes(), np.uint8)

    assert array[0, 0] == 1.5
    assert region.address == array.ctypes.data
    assert region.info == RegionInfo("kv", "host", 256, 16, 3)


def test_torch_tensor_of_any_dtype_is_registered_in_place():
    tensor = torch.zeros(4, 16, dtype=torch.bfloat16)

    region = region_of(tensor, SHAPE)
    region.memory[:] = 0xFF

    assert torch.isnan(tensor).all()
    assert region.info.nbytes == 128


def test_shared_memory_can_be_mapped_by_its_descriptor():
    memory = SharedMemory("kv", 64)
    region = region_of(memory, SHAPE)

    seen = map_to_read(memory.fd, 64)
    region.memory[5] = 7

    assert seen[5] == 7
    assert not seen.flags.writeable
    memory.close()


def test_part_of_a_file_is_registered_by_its_place():
    with tempfile.TemporaryFile() as file:
        file.truncate(100)

        region = region_of(FileMemory(file.fileno(), 64, offset=36), SHAPE)

        assert (region.info.kind, region.address, region.info.nbytes) == ("file", 36, 64)
        with pytest.raises(InvalidValue, match="within the file's 100 bytes"):
            region_of(FileMemory(file.fileno(), 65, offset=36), SHAPE)


def test_region_without_a_block_size_is_one_block():
    info = region_of(bytearray(48), Shape("kv", 0, 0)).info

    assert (info.block_bytes, info.num_blocks) == (48, 1)


@pytest.mark.parametrize(
    ("buffer", "reason"),
    [
        (b"read-only", "writable"),
        (np.zeros((4, 4))[:, 0], "contiguous"),
        (torch.zeros(4, 4)[:, 0], "contiguous"),
        (bytearray(), "not empty"),
        (7, "must be a SharedMemory"),
        (torch.zeros(4, device="meta"), "must be cpu or cuda"),
    ],
)
def test_what_cannot_be_written_in_one_piece_is_refused(buffer, reason):
    with pytest.raises(InvalidValue, match=reason):
        region_of(buffer, SHAPE)


@pytest.mark.parametrize("block_bytes", [-1, 49])
def test_block_size_must_fit_into_the_region(block_bytes):
    with pytest.raises(InvalidValue, match="block_bytes"):
        region_of(bytearray(48), Shape("kv", block_bytes, 0))
