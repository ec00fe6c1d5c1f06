"""What every attention backend must do, against a brute force in float64.

Parametrized over the registry: a new backend is tested by its name alone. One that cannot serve a
case on this machine is skipped with its own reason.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from stafette.workers.attention import registry
from stafette.workers.attention.backend import AttentionMetadata, AttentionShape

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
NUM_LAYERS, LAYER = 3, 1


@dataclass(frozen=True)
class Case:
    """Sequences as (new tokens, context with them); a context of 0 is a padded row."""

    sequences: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    dtype: str = "float32"
    kv_dtype: str = "float32"

    @property
    def shape(self):
        scale = self.head_dim**-0.5
        heads = self.num_heads, self.num_kv_heads, self.head_dim
        return AttentionShape(*heads, self.block_size, scale, self.window)


PREFILL = Case(((5, 5), (40, 40), (16, 16), (1, 1)))
CHUNK = Case(((7, 30), (33, 70), (16, 32)))
DECODE = Case(((1, 9), (1, 100), (1, 16), (1, 17), (1, 1)))
MIXED = Case(((1, 50), (20, 20), (1, 3), (12, 45), (3, 64)))
CASES = {
    "prefill": PREFILL,
    "prefill_of_equal_prompts": Case(((48, 48),) * 3),
    "chunked_prefill": CHUNK,
    "decode": DECODE,
    "mixed": MIXED,
    "one_token": Case(((1, 1),)),
    "drafts_to_verify": Case(((4, 33), (4, 20), (1, 50))),
    "long_context": Case(((1, 700), (1, 20), (40, 600))),
    "equal_heads": replace(MIXED, num_kv_heads=4),
    "one_kv_head": replace(MIXED, num_heads=7, num_kv_heads=1),
    "nine_heads_of_three": replace(MIXED, num_heads=9, num_kv_heads=3),
    "head_dim_32": replace(MIXED, head_dim=32),
    "head_dim_80": replace(MIXED, head_dim=80),
    "head_dim_128": replace(MIXED, head_dim=128),
    "block_of_1": replace(MIXED, block_size=1),
    "block_of_8": replace(MIXED, block_size=8),
    "block_of_64": replace(MIXED, block_size=64),
    "window_in_prefill": replace(PREFILL, window=8),
    "window_in_chunks": replace(CHUNK, window=8),
    "window_in_decode": replace(DECODE, window=20),
    "window_wider_than_all": replace(MIXED, window=1000),
    "bfloat16": replace(MIXED, dtype="bfloat16", kv_dtype="bfloat16"),
    "float16": replace(MIXED, dtype="float16", kv_dtype="float16"),
    "fp8_pool": replace(MIXED, dtype="bfloat16", kv_dtype="fp8"),
    "fp8_pool_in_prefill": replace(PREFILL, kv_dtype="fp8"),
    "fp8_pool_in_decode": replace(DECODE, kv_dtype="fp8"),
    "padded_decode": Case(((1, 9), (1, 33), (1, 0), (1, 0))),
}


def random_case(seed):
    random = np.random.default_rng(seed)
    kv_heads = int(random.integers(1, 4))
    contexts = random.integers(1, 200, random.integers(1, 7)).tolist()
    news = [1 if random.random() < 0.5 else int(random.integers(1, c + 1)) for c in contexts]
    dtype = random.choice(["float32", "bfloat16"])
    return Case(
        sequences=tuple(zip(news, contexts, strict=True)),
        num_heads=kv_heads * int(random.integers(1, 5)),
        num_kv_heads=kv_heads,
        head_dim=int(random.choice([32, 64, 96, 128])),
        block_size=int(random.choice([4, 16, 32])),
        window=int(random.integers(1, 150)) if random.random() < 0.3 else None,
        dtype=dtype,
        kv_dtype=dtype,
    )


CASES |= {f"random_{seed}": random_case(seed) for seed in range(12)}


class Setup:
    """A backend, a pool with every context's past in it, and one step's q, k and v."""

    def __init__(self, name, case, seed=0):
        reason = registry.why_not(name, case.shape, DEVICE, case.kv_dtype)
        if reason is not None:
            pytest.skip(f"{name}: {reason}")
        self.case = case
        self.random = np.random.default_rng(seed)
        self.backend = registry.load(name)(case.shape)
        self.tables = self._tables()
        self.pool = self._pool()
        self.layer = self.pool[:, LAYER]
        self.q, self.k, self.v = self._qkv()
        self.meta = self._metadata()

    def _tables(self):
        sizes = [-(-context // self.case.block_size) for _, context in self.case.sequences]
        self.num_blocks = sum(sizes) + 3
        order = self.random.permutation(self.num_blocks)
        tables = np.zeros((len(sizes), max(sizes)), np.int32)
        for row, size in enumerate(sizes):
            tables[row, :size], order = order[:size], order[size:]
        return tables

    def _pool(self):
        case = self.case
        shape = self.num_blocks, NUM_LAYERS, 2, case.num_kv_heads, case.block_size, case.head_dim
        values = torch.from_numpy(self.random.standard_normal(shape).astype(np.float32))
        return values.to(DTYPES[case.kv_dtype]).to(DEVICE)

    def _qkv(self):
        """Views into one fused product, as the models pass them."""
        case = self.case
        counts = [case.num_heads, case.num_kv_heads, case.num_kv_heads]
        tokens = sum(new for new, _ in case.sequences)
        values = self.random.standard_normal((tokens, sum(counts), case.head_dim))
        fused = torch.from_numpy(values.astype(np.float32)).to(DEVICE, DTYPES[case.dtype])
        return fused.split(counts, dim=1)

    def _metadata(self):
        news = [new for new, _ in self.case.sequences]
        contexts = [context for _, context in self.case.sequences]
        size = self.case.block_size
        slots = []
        for (new, context), table in zip(self.case.sequences, self.tables, strict=True):
            places = range(context - new, context) if context else [-1]
            slots += [int(table[p // size]) * size + p % size if p >= 0 else -1 for p in places]
        as_tensor = lambda values, dtype: torch.tensor(values, dtype=dtype, device=DEVICE)  # noqa: E731
        return AttentionMetadata(
            query_starts=as_tensor(np.cumsum([0, *news]), torch.int32),
            context_lens=as_tensor(contexts, torch.int32),
            block_tables=as_tensor(self.tables, torch.int32),
            slots=as_tensor(slots, torch.int64),
            max_query_len=max(news),
            max_context_len=max(contexts),
        )

    def brute_force(self):
        """Attention over what the pool holds now, one query head at a time."""
        layer = self.layer.float().cpu().double().numpy()
        q = self.q.double().cpu().numpy()
        out, first = np.zeros(q.shape), 0
        for (new, context), table in zip(self.case.sequences, self.tables, strict=True):
            for token in range(new if context else 0):
                out[first + token] = self._one(
                    q[first + token], layer, table, context - new + token
                )
            first += new
        return torch.from_numpy(out)

    def _one(self, q, layer, table, position):
        case = self.case
        oldest = 0 if case.window is None else max(0, position - case.window + 1)
        seen = np.arange(oldest, position + 1)
        context = layer[table[seen // case.block_size], :, :, seen % case.block_size]
        group = case.num_heads // case.num_kv_heads
        keys, values = np.repeat(context, group, axis=2).transpose(1, 2, 0, 3)
        scores = np.einsum("hd,hkd->hk", q, keys) * case.shape.scale
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("hk,hkd->hd", weights / weights.sum(-1, keepdims=True), values)


@pytest.fixture(params=registry.BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_attention_is_that_of_the_brute_force(backend, case):
    setup = Setup(backend, CASES[case])

    setup.backend.write(setup.k, setup.v, setup.layer, setup.meta)
    out = setup.backend.attend(setup.q, setup.layer, setup.meta)

    real = (setup.meta.slots >= 0).cpu()
    assert out.shape == setup.q.shape
    assert out.dtype == setup.q.dtype
    expected = setup.brute_force()[real]
    tolerance = TOLERANCE[out.dtype]
    torch.testing.assert_close(out.cpu().double()[real], expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", ["mixed", "bfloat16", "fp8_pool", "padded_decode", "block_of_1"])
def test_tokens_are_stored_at_their_slots_and_nowhere_else(backend, case):
    setup = Setup(backend, CASES[case])
    before = setup.pool.float().cpu()

    setup.backend.write(setup.k, setup.v, setup.layer, setup.meta)

    size = setup.case.block_size
    for token, slot in enumerate(setup.meta.slots.tolist()):
        if slot >= 0:
            for index, values in enumerate((setup.k, setup.v)):
                stored = values[token].to(setup.pool.dtype).float().cpu()
                before[slot // size, LAYER, index, :, slot % size] = stored
    assert torch.equal(setup.pool.float().cpu(), before)


def test_values_too_large_for_fp8_become_its_largest(backend):
    setup = Setup(backend, replace(DECODE, kv_dtype="fp8"))

    setup.backend.write(setup.k * 1e4, setup.v * -1e4, setup.layer, setup.meta)

    assert setup.pool.float().abs().max() == 448.0


def test_layers_of_one_step_share_its_metadata(backend):
    setup = Setup(backend, MIXED)

    for layer in setup.pool.unbind(1):
        setup.backend.write(setup.k, setup.v, layer, setup.meta)
        out = setup.backend.attend(setup.q, layer, setup.meta)

    setup.layer = setup.pool[:, NUM_LAYERS - 1]
    torch.testing.assert_close(out.cpu().double(), setup.brute_force(), atol=1e-4, rtol=1e-4)
