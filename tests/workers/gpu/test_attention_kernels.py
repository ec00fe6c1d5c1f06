"""What the Triton kernels promise beyond the contract; compiled on a GPU, else interpreted."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from stafette.workers.attention.backend import AttentionMetadata, AttentionShape
from stafette.workers.attention.triton_attention import TritonAttention

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = AttentionShape(4, 2, 64, 16, 0.125)


class Paged:
    """A pool in which each sequence owns some blocks; all others hold NaN."""

    def __init__(self, contexts, shape=SHAPE, dtype=torch.float32, kv_dtype=None):
        torch.manual_seed(0)
        self.shape, self.dtype = shape, dtype
        width = max(-(-context // shape.block_size) for context in contexts) + 1
        order = torch.randperm(len(contexts) * width + 1, device=DEVICE, dtype=torch.int32)
        self.tables = order[1:].view(len(contexts), width)
        sizes = len(order), 2, shape.num_kv_heads, shape.block_size, shape.head_dim
        pool = torch.full(sizes, torch.nan, device=DEVICE)
        for table, context in zip(self.tables, contexts, strict=True):
            blocks = table[: -(-context // shape.block_size)].long()
            pool[blocks] = torch.randn(len(blocks), *sizes[1:], device=DEVICE)
        self.layer = pool.to(kv_dtype or dtype)

    def attend(self, rows, news, contexts, q):
        """Run one step over some of the sequences: `news` queries each, `contexts` long after."""
        starts = torch.tensor([0, *news], device=DEVICE).cumsum(0, dtype=torch.int32)
        meta = AttentionMetadata(
            query_starts=starts,
            context_lens=torch.tensor(contexts, dtype=torch.int32, device=DEVICE),
            block_tables=self.tables[rows],
            slots=torch.full((sum(news),), -1, device=DEVICE),
            max_query_len=max(news),
            max_context_len=max(contexts),
        )
        return TritonAttention(self.shape).attend(q, self.layer, meta)


def queries(count, shape=SHAPE, dtype=torch.float32):
    return torch.randn(count, shape.num_heads, shape.head_dim, device=DEVICE).to(dtype)


def assert_same(one, other):
    """Bitwise on a GPU. The interpreter multiplies tiles with NumPy, whose BLAS may sum a row in
    another order where it stands at another place of the tile: there, to the last bits.
    """
    if DEVICE == "cuda":
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [None, 300])
def test_decoded_token_is_bitwise_the_same_in_every_batch(window):
    shape = AttentionShape(4, 2, 64, 16, 0.125, window)
    paged = Paged([1000, 40, 600, 513], shape)
    q = queries(4, shape)

    together = paged.attend([0, 1, 2, 3], [1] * 4, [1000, 40, 600, 513], q)

    for row, context in enumerate([1000, 40, 600, 513]):
        alone = paged.attend([row], [1], [context], q[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_decoded_token_is_bitwise_the_same_beside_a_prompt():
    paged = Paged([700, 90])
    q = queries(61)

    mixed = paged.attend([0, 1], [1, 60], [700, 90], q)

    assert torch.equal(paged.attend([0], [1], [700], q[:1])[0], mixed[0])


def test_prompt_is_bitwise_the_same_in_chunks():
    paged = Paged([150])
    q = queries(150)

    whole = paged.attend([0], [150], [150], q)

    chunks = [
        paged.attend([0], [stop - start], [stop], q[start:stop])
        for start, stop in ((0, 37), (37, 101), (101, 150))
    ]
    assert_same(torch.cat(chunks), whole)


def test_padded_row_is_zero_and_reads_nothing():
    paged = Paged([300, 1])
    paged.tables[1] = 10**6  # no such block

    out = paged.attend([0, 1], [1, 1], [300, 0], queries(2))

    assert torch.isfinite(out[0]).all()
    assert (out[1] == 0).all()


def test_step_of_padded_rows_alone_is_zero():
    paged = Paged([1, 1])

    assert (paged.attend([0, 1], [1, 1], [0, 0], queries(2)) == 0).all()


def test_fp8_pool_stores_what_fp8_can_hold_unchanged():
    # The contract test stores arbitrary values: those the interpreter rounds wrongly.
    paged = Paged([16], kv_dtype=torch.float8_e4m3fn)
    k = torch.randn(16, 2, 64, device=DEVICE).to(torch.float8_e4m3fn).float()
    slots = paged.tables[0, 0].long() * 16 + torch.arange(16, device=DEVICE)
    meta = AttentionMetadata(paged.tables, paged.tables, paged.tables, slots, 1, 1)

    TritonAttention(SHAPE).write(k, -k, paged.layer, meta)

    keys, values = paged.layer[paged.tables[0, 0].item()].float().transpose(1, 2)
    assert torch.equal(keys, k)
    assert torch.equal(values, -k)
