"""The adapters to flash-attn, on stand-ins with the real functions' signatures and rules."""

import re
import sys
from types import ModuleType

import pytest
import torch

from stafette.workers.attention import flash_attn
from stafette.workers.attention.backend import AttentionMetadata, AttentionShape
from stafette.workers.attention.flash_attn import FlashAttention
from stafette.workers.attention.reference import ReferenceAttention

CUDA = torch.device("cuda")
SHAPE = AttentionShape(4, 2, 16, 4, 0.3)
BIG_PAGES = AttentionShape(4, 2, 16, 256, 0.3)
STEP = ((3, 7), (1, 9), (4, 4))  # (new tokens, context with them)


def brute_force(q, keys, values, table, starts, lens, scale, left):
    """Attend as the libraries define it, over pages [blocks, size, heads, head_dim]."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for row, context in enumerate(lens.tolist()):
        first, last = int(starts[row]), int(starts[row + 1])
        past_k = keys[table[row].long()].flatten(0, 1)[:context].double()
        past_v = values[table[row].long()].flatten(0, 1)[:context].double()
        group = q.shape[1] // past_k.shape[1]
        for token in range(first, last):
            position = context - (last - token)
            oldest = 0 if left is None else max(0, position - left)
            seen_k = past_k[oldest : position + 1].repeat_interleave(group, 1)
            seen_v = past_v[oldest : position + 1].repeat_interleave(group, 1)
            weights = torch.einsum("hd,khd->hk", q[token].double(), seen_k).mul(scale).softmax(-1)
            out[token] = torch.einsum("hk,khd->hd", weights, seen_v)
    return out.to(q.dtype)


def checked(q, k, v, table, *lengths):
    """Hold the rules that all three share."""
    assert q.dtype == k.dtype == v.dtype
    assert k.stride(-1) == v.stride(-1) == table.stride(-1) == 1
    assert k.shape == v.shape
    assert k.shape[-1] == q.shape[-1]
    assert all(each.dtype == torch.int32 for each in (table, *lengths))
    assert table.shape[0] == len(lengths[0]) - 1


def fa3(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None,
    cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None,
    cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
    q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):  # fmt: skip
    checked(q, k_cache, v_cache, page_table, cu_seqlens_q, cache_seqlens)
    assert causal
    assert max_seqlen_q >= cu_seqlens_q.diff().max()
    left = None if window_size == (-1, -1) else window_size[0]
    return brute_force(
        q, k_cache, v_cache, page_table, cu_seqlens_q, cache_seqlens, softmax_scale, left
    )


def fa4(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
    min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
    softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
    num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None,
    mask_mod=None, block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False,
    scheduler_metadata=None, seqlen_k_per_split=None, disable_scheduler_metadata=False,
    gather_bwd_recompute_p=False, gather_bwd_token_chunk=None,
):  # fmt: skip
    checked(q, k, v, page_table, cu_seqlens_q, seqused_k)
    assert cu_seqlens_k is None  # not together with a page table
    assert causal
    assert num_splits == 1  # Hopper takes no other
    assert window_size[1] in (None, 0)
    out = brute_force(q, k, v, page_table, cu_seqlens_q, seqused_k, softmax_scale, window_size[0])
    return out, None


def fa2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    checked(q, k, v, block_table, cu_seqlens_q, cu_seqlens_k)
    assert causal
    assert k.shape[1] % 256 == 0  # the page size
    assert len(cu_seqlens_k) == len(cu_seqlens_q)
    lens = cu_seqlens_k.diff()
    assert max_seqlen_k >= lens.max()
    left = None if window_size == (-1, -1) else window_size[0]
    return brute_force(q, k, v, block_table, cu_seqlens_q, lens, softmax_scale, left)


LIBRARIES = {
    "fa3": ("flash_attn_interface", "flash_attn_with_kvcache", fa3, (9, 0), SHAPE),
    "fa4": ("flash_attn.cute", "flash_attn_varlen_func", fa4, (10, 0), SHAPE),
    "fa2": ("flash_attn", "flash_attn_varlen_func", fa2, (8, 0), BIG_PAGES),
}


@pytest.fixture
def machine(monkeypatch):
    """Puts a GPU of a capability here, with some of the libraries."""
    for name in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, None)

    def make(capability, *names):
        monkeypatch.setattr(flash_attn, "_capability", lambda: capability)
        for name in names:
            module, function, fake, *_ = LIBRARIES[name]
            made = ModuleType(module)
            setattr(made, function, fake)
            monkeypatch.setitem(sys.modules, module, made)
            if module == "flash_attn.cute":
                monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))

    return make


def step(shape):
    """Return q, a layer of a pool with random contents, and the metadata of STEP."""
    torch.manual_seed(0)
    news, contexts = zip(*STEP, strict=True)
    width = -(-max(contexts) // shape.block_size)
    tables = torch.randperm(len(STEP) * width, dtype=torch.int32).view(len(STEP), width)
    sizes = tables.numel(), 3, 2, shape.num_kv_heads, shape.block_size, shape.head_dim
    layer = torch.randn(sizes).bfloat16()[:, 1]
    q = torch.randn(sum(news), shape.num_heads, shape.head_dim).bfloat16()
    meta = AttentionMetadata(
        query_starts=torch.tensor([0, *news]).cumsum(0, dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        block_tables=tables,
        slots=torch.full((sum(news),), -1),
        max_query_len=max(news),
        max_context_len=max(contexts),
    )
    return q, layer, meta


def windowed(shape, window):
    sizes = shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.block_size
    return AttentionShape(*sizes, shape.scale, window)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("window", [None, 3])
def test_library_is_asked_for_what_the_contract_says(machine, name, window):
    *_, capability, shape = LIBRARIES[name]
    machine(capability, name)
    shape = windowed(shape, window)
    q, layer, meta = step(shape)

    out = FlashAttention(shape).attend(q, layer, meta)

    expected = ReferenceAttention(shape).attend(q, layer, meta)
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", LIBRARIES)
def test_pool_is_handed_over_without_a_copy(machine, name, monkeypatch):
    seen = []
    monkeypatch.setattr(
        sys.modules[__name__], "brute_force", lambda q, k, v, *_: seen.extend((k, v)) or q
    )
    *_, capability, shape = LIBRARIES[name]
    machine(capability, name)
    q, layer, meta = step(shape)

    FlashAttention(shape).attend(q, layer, meta)

    assert [pages.data_ptr() for pages in seen] == [layer[:, i].data_ptr() for i in (0, 1)]


def test_layers_of_a_step_share_the_sums_that_fa2_needs(machine):
    machine((8, 0), "fa2")
    q, layer, meta = step(BIG_PAGES)
    backend = FlashAttention(BIG_PAGES)

    backend.attend(q, layer, meta)
    plan = meta.plan
    backend.attend(q, layer, meta)

    assert plan.tolist() == [0, 7, 16, 20]
    assert meta.plan is plan


def test_hopper_prefers_fa3_and_blackwell_takes_fa4(machine):
    machine((9, 0), "fa3", "fa4")
    assert FlashAttention(SHAPE)._library.name == "FA3"

    machine((10, 0), "fa3", "fa4")
    assert FlashAttention(SHAPE)._library.name == "FA4"


@pytest.mark.parametrize(
    ("capability", "names", "shape", "kv_dtype", "reason"),
    [
        ((9, 0), (), SHAPE, "bfloat16", "FA3 is not installed.*FA4 is not installed"),
        ((8, 0), ("fa2",), SHAPE, "bfloat16", "FA2 needs a block_size of 256, this is 4"),
        ((8, 0), ("fa4",), BIG_PAGES, "bfloat16", "FA4 reads a paged pool.*FA2 is not installed"),
        ((9, 0), ("fa3",), SHAPE, "fp8", "not fp8"),
        ((9, 0), ("fa3",), SHAPE, "float32", "not float32"),
        ((9, 0), ("fa3",), AttentionShape(4, 2, 20, 4, 1.0), "bfloat16", "head_dim 20"),
        ((10, 0), ("fa4",), AttentionShape(4, 2, 192, 4, 1.0), "bfloat16", "no head_dim 192"),
    ],
)
def test_reason_says_what_is_missing(machine, capability, names, shape, kv_dtype, reason):
    machine(capability, *names)

    found = FlashAttention.why_not(shape, CUDA, kv_dtype)

    assert found is not None
    assert re.search(reason, found)


def test_cpu_is_no_place_for_it():
    assert (
        FlashAttention.why_not(SHAPE, torch.device("cpu"), "bfloat16") == "it needs a CUDA device"
    )


def test_library_that_serves_leaves_no_reason(machine):
    machine((9, 0), "fa4")

    assert FlashAttention.why_not(SHAPE, CUDA, "bfloat16") is None
