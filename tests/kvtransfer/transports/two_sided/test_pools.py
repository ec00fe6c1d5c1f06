"""Packing and unpacking: what numpy does range by range, for host memory and by torch."""

import numpy as np
import pytest
import torch

from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transports.cuts import Cuts
from stafette.kvtransfer.transports.two_sided.pools import DevicePool, HostPool, grain_of

SIZE = 1 << 16


def host(memory):
    return HostPool(memory)


def device(memory):
    """What runs on a GPU, with a tensor that needs none."""
    return DevicePool(torch.from_numpy(memory).view(torch.float32), None)


def cut(pairs, part_bytes=SIZE):
    return Cuts(Extents.of("pool", pairs), part_bytes)


CASES = {
    "blocks": [(block * 4096, 4096) for block in (3, 0, 9, 1)],
    "words": [(136, 72), (8, 8), (1024, 640)],
    "bytes": [(3, 5), (17, 1), (100, 301)],
    "odd grain": [(100, 300), (1000, 100), (700, 200)],
}


@pytest.fixture(params=[host, device])
def make_pool(request):
    return request.param


@pytest.fixture(params=CASES)
def pairs(request):
    return CASES[request.param]


def test_gathered_bytes_are_the_ranges_in_order(make_pool, pairs):
    memory = np.random.default_rng(1).integers(0, 256, SIZE).astype(np.uint8)
    part = cut(pairs)[0]
    buffer = torch.zeros(part.nbytes, dtype=torch.uint8)

    make_pool(memory).gather(part, buffer)

    assert buffer.numpy().tobytes() == b"".join(memory[a : a + n].tobytes() for a, n in pairs)


def test_scattered_bytes_are_each_in_their_place_and_nowhere_else(make_pool, pairs):
    memory = np.zeros(SIZE, np.uint8)
    part = cut(pairs)[0]
    source = np.random.default_rng(2).integers(1, 256, part.nbytes).astype(np.uint8)
    expected, at = np.zeros(SIZE, np.uint8), 0
    for offset, length in pairs:
        expected[offset : offset + length] = source[at : at + length]
        at += length

    pool = make_pool(memory)
    pool.scatter(part, torch.from_numpy(source))
    pool.settle()

    assert np.array_equal(memory, expected)


def test_region_that_is_no_multiple_of_the_grain_is_read_to_its_last_whole_one():
    memory = np.arange(4 * 1000 * 4, dtype=np.uint32).view(np.uint8)[: 4 * 1000].copy()
    part = cut([(768, 256), (3584, 256)])[0]
    buffer = torch.zeros(512, dtype=torch.uint8)

    device(memory).gather(part, buffer)

    expected = memory[768:1024].tobytes() + memory[3584:3840].tobytes()
    assert buffer.numpy().tobytes() == expected


def test_grain_is_what_all_offsets_and_lengths_have_in_common():
    assert grain_of(cut([(0, 4096), (8192, 4096)])[0]) == 4096
    assert grain_of(cut([(6, 4), (10, 2)])[0]) == 2
