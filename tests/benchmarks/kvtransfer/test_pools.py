"""What is measured is checked: every byte of a list, and every byte beside it."""

import numpy as np
import pytest

from benchmarks.kvtransfer.peers import pools
from benchmarks.kvtransfer.peers.protocol import Run

POOL_BYTES = 1 << 20
BLOCK_BYTES = 4096
INTO, SOURCE = np.array([3, 200, 7]), np.array([9, 0, 255])


@pytest.fixture
def source():
    pool = pools.allocate(POOL_BYTES)
    pools.fill(pool)
    return pool.reshape(-1, BLOCK_BYTES)


@pytest.fixture
def into():
    return pools.allocate(POOL_BYTES)


def wrong(into: np.ndarray) -> str:
    return pools.wrong_bytes(into, INTO, SOURCE, BLOCK_BYTES)


def test_a_list_that_arrived_is_right_and_leaves_the_pool_empty(source, into):
    into.reshape(-1, BLOCK_BYTES)[INTO] = source[SOURCE]

    assert wrong(into) == ""
    assert not into.any()


def test_one_wrong_byte_is_found(source, into):
    into.reshape(-1, BLOCK_BYTES)[INTO] = source[SOURCE]
    into[200 * BLOCK_BYTES + 4095] ^= 1

    assert "do not hold what the owner has" in wrong(into)


def test_one_byte_beside_the_list_is_found(source, into):
    into.reshape(-1, BLOCK_BYTES)[INTO] = source[SOURCE]
    into[8 * BLOCK_BYTES] = 1

    assert "outside" in wrong(into)


def test_no_word_of_a_full_pool_looks_empty_or_like_another(source):
    words = source.view(np.uint64).ravel()

    assert words.all()
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize(("num_blocks", "least"), [(1, 4000), (256, 400)])
def test_lists_are_new_each_time_and_hold_no_block_twice(num_blocks, least):
    lists = pools.lists(Run(num_blocks, BLOCK_BYTES, seed=5, seconds=1.0), 512 << 20)

    assert len(lists) >= least
    assert all(len(set(side.tolist())) == num_blocks for pair in lists[:20] for side in pair)
    assert not np.array_equal(lists[0][1], lists[1][1])
    assert not np.array_equal(lists[0][0], lists[0][1])


def test_the_same_seed_gives_the_same_lists():
    run = Run(4, BLOCK_BYTES, seed=5, seconds=1.0)

    assert str(pools.lists(run, POOL_BYTES)[:9]) == str(pools.lists(run, POOL_BYTES)[:9])
