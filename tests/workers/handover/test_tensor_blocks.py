"""A pool's blocks as torch copies them, beside numpy doing the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.connectors.connector import KvShare
from stafette.kvtransfer.layout import BlockLayout
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.workers.handover.tensor_blocks import TensorBlocks, device_blocks

SHAPE = (16, 2, 2, 1, 4, 8)  # blocks, layers, K and V, heads, tokens, head dimension
ROWS = 12


def pools(dtype: torch.dtype):
    """A pool, the same bytes for numpy, and a host pool."""
    torch.manual_seed(0)
    pool = torch.randn(SHAPE).to(dtype)
    flat = pool.view(torch.uint8).view(SHAPE[0], -1).numpy().copy()
    host = np.random.default_rng(1).integers(0, 256, (ROWS, flat.shape[1]), np.uint8)
    return pool, flat, host


pairs = st.integers(0, ROWS).flatmap(
    lambda count: st.tuples(
        st.permutations(range(SHAPE[0])).map(lambda some: some[:count]),
        st.permutations(range(ROWS)).map(lambda some: some[:count]),
    )
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(out=pairs, back=pairs)
@settings(deadline=None, max_examples=25)
def test_it_copies_as_numpy_does(dtype, out, back):
    pool, flat, host = pools(dtype)
    expected_host = host.copy()
    blocks, expected = TensorBlocks(pool), ArrayBlocks(flat)
    assert (blocks.num_blocks, blocks.block_bytes) == (expected.num_blocks, expected.block_bytes)

    for each, memory in ((blocks, host), (expected, expected_host)):
        each.copy_out(out[0], memory, out[1])
        each.copy_in(back[0], memory, back[1])

    assert (host == expected_host).all()
    assert (pool.view(torch.uint8).view(SHAPE[0], -1).numpy() == flat).all()


def test_a_pool_in_host_memory_needs_no_torch():
    layout = BlockLayout(2, 1, 4, 8, "float32")
    memory = bytearray(3 * layout.block_bytes)

    assert isinstance(device_blocks(KvShare(memory, layout)), ArrayBlocks)
