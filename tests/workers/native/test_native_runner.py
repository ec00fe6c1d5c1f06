"""The native runner against the torch tier in float32, and against itself in other batches."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.workers.config import EngineConfig
from stafette.workers.errors import CheckpointError, ConfigError, OutOfMemory
from stafette.workers.models.spec import MoeSpec, RopeSpec
from stafette.workers.native import library
from stafette.workers.runner import native
from stafette.workers.runner.native import NativeRunner
from stafette.workers.runner.torch_runner import TorchRunner


def _toys():
    spec = importlib.util.spec_from_file_location("native_toys", Path(__file__).parent / "toys.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toys = _toys()
Sequence, ToyCheckpoint, step, toy_spec = (
    toys.Sequence,
    toys.ToyCheckpoint,
    toys.step,
    toys.toy_spec,
)

ISAS = [
    name
    for name in ("avx512_bf16", "avx512", "avx2", "scalar")
    if library.why_not() is None and library.why_not(name) is None
]
FAST = ISAS[:1]
NUM_BLOCKS = 40
pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))

# Root mean square of the logits' errors, in standard deviations of the logits: the activations are
# rounded to 8 bits per group of 32, or to bfloat16.
TOLERANCE = {
    "int4": 0.05,
    "int4_symmetric": 0.05,
    "int8": 0.05,
    "float32": 0.015,
    "float16": 0.015,
    "bfloat16": 0.015,
}


@pytest.fixture(autouse=True)
def one_torch_thread():
    """The reference's matrices are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(checkpoint, isa="", **flags):
    flags = {"num_threads": 2, "max_num_batched_tokens": 256} | flags
    runner = NativeRunner(EngineConfig(**flags), checkpoint, isa)
    runner.allocate_kv(NUM_BLOCKS)
    return runner


def reference_logits(checkpoint, inputs, **flags):
    flags = {
        "dtype": "float32",
        "kv_cache_dtype": "float32",
        "attention_backend": "reference",
    } | flags
    runner = TorchRunner(EngineConfig(**flags), checkpoint)
    runner.allocate_kv(NUM_BLOCKS)
    return runner.forward(inputs)


def sequences(spec, *lengths, block_size=16, seed=0):
    random = np.random.default_rng(seed)
    free = random.permutation(NUM_BLOCKS).tolist()
    made = []
    for length in lengths:
        blocks = [free.pop() for _ in range(-(-length // block_size))]
        made.append(Sequence(random.integers(0, spec.vocab_size, length).tolist(), blocks))
    return made


def whole(*seqs):
    return [(seq, 0, len(seq.tokens)) for seq in seqs]


def assert_close(logits, expected, kind):
    error = (logits - expected).square().mean().sqrt() / expected.std()
    assert error < TOLERANCE[kind], float(error)


SPECS = {
    "llama": toy_spec(),
    "tied": toy_spec(tie_word_embeddings=True),
    "qwen2": toy_spec(architecture="qwen2", attention_bias=True),
    "qwen3": toy_spec(architecture="qwen3", qk_norm=True, head_dim=48),
    "mistral": toy_spec(architecture="mistral", sliding_window=20),
    "llama3_rope": toy_spec(
        rope=RopeSpec(theta=5e5, kind="llama3", factor=8, original_max_position=64)
    ),
    "nine_heads_of_three": toy_spec(num_heads=9, num_kv_heads=3, head_dim=64),
    "one_kv_head": toy_spec(num_kv_heads=1, head_dim=80, num_heads=2),
}


@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("name", SPECS)
def test_logits_are_those_of_the_torch_tier_in_float32(name, kind):
    spec = SPECS[name]
    checkpoint = ToyCheckpoint(spec, kind)
    inputs = step(whole(*sequences(spec, 37, 1, 20)))

    logits = make(checkpoint).forward(inputs).logits

    assert_close(logits, reference_logits(checkpoint, inputs).logits, kind)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["int4", "int8", "bfloat16"])
def test_every_instruction_set_gives_the_logits_of_the_reference(isa, kind):
    spec = toy_spec(num_heads=6, num_kv_heads=2, head_dim=48, num_layers=1)
    checkpoint = ToyCheckpoint(spec, kind)
    inputs = step(whole(*sequences(spec, 150, 2, 17)))

    logits = make(checkpoint, isa).forward(inputs).logits

    assert_close(logits, reference_logits(checkpoint, inputs).logits, kind)


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
def test_every_kv_dtype_serves(kv_dtype):
    checkpoint = ToyCheckpoint(toy_spec(), "int8")
    (seq,) = sequences(checkpoint.spec, 60)
    runner = make(checkpoint, kv_cache_dtype=kv_dtype)

    runner.forward(step([(seq, 0, 59)]))
    logits = runner.forward(step([(seq, 59, 60)])).logits

    assert str(runner.kv_pool().dtype) == f"torch.{kv_dtype}"
    expected = reference_logits(checkpoint, step(whole(seq))).logits[-1:]
    assert_close(logits, expected, "int8")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_odd_shapes_agree_with_the_reference(data):
    kv_heads = data.draw(st.integers(1, 8))
    kind = data.draw(st.sampled_from(sorted(TOLERANCE)))
    unit = 32 if kind.startswith("int") else data.draw(st.sampled_from([8, 24, 32]))
    head_dim = data.draw(st.sampled_from([16, 64, 80, 128]))
    group = data.draw(st.integers(1, 3))
    if kind.startswith("int") and head_dim * kv_heads * group % 32:
        head_dim = 64
    spec = toy_spec(
        vocab_size=data.draw(st.integers(2, 90)),
        hidden_size=unit * data.draw(st.integers(2, 4)),
        intermediate_size=unit * data.draw(st.integers(2, 4)),
        num_layers=1,
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=data.draw(st.booleans()),
    )
    block_size = data.draw(st.sampled_from([1, 16, 32]))
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=2))
    checkpoint = ToyCheckpoint(spec, kind, seed=data.draw(st.integers(0, 9)))
    inputs = step(whole(*sequences(spec, *lengths, block_size=block_size)), hidden=True)

    got = make(checkpoint, FAST[0], block_size=block_size, num_threads=1).forward(inputs)

    expected = reference_logits(checkpoint, inputs, block_size=block_size)
    assert_close(got.hidden, expected.hidden, kind)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["int4", "int8", "bfloat16"])
def test_a_rows_logits_do_not_depend_on_its_batch_its_chunks_or_the_threads(isa, kind):
    spec = toy_spec(num_heads=6, num_kv_heads=2, num_layers=2 if isa != "scalar" else 1)
    checkpoint = ToyCheckpoint(spec, kind)
    first, second, third = sequences(spec, 150, 40, 23)
    everything = make(checkpoint, isa).forward(step(whole(first))).logits.clone()

    for threads in (1, 2, 3):
        runner = make(checkpoint, isa, num_threads=threads)
        head = runner.forward(step([(second, 0, 30), (first, 0, 67)])).logits[30:].clone()
        middle = runner.forward(step([(first, 67, 149), (second, 30, 31), (third, 0, 23)]))
        middle = middle.logits[:82].clone()
        last = runner.forward(step([(first, 149, 150)])).logits

        assert torch.equal(torch.cat((head, middle, last)), everything)


def test_hidden_rows_are_after_the_final_norm():
    checkpoint = ToyCheckpoint(toy_spec(), "int8")
    inputs = step(whole(*sequences(checkpoint.spec, 9)), hidden=True)

    hidden = make(checkpoint).forward(inputs).hidden

    expected = reference_logits(checkpoint, inputs).hidden
    # Weights and activations of 8 bits: single values stray, rows do not, whatever the CPU.
    strayed = (hidden - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert strayed.max() < 0.05
    assert (hidden.norm(dim=-1) / expected.norm(dim=-1) - 1).abs().max() < 0.01


def test_logits_are_given_for_the_rows_asked_for_and_no_others():
    checkpoint = ToyCheckpoint(toy_spec(), "int4")
    inputs = step(whole(*sequences(checkpoint.spec, 30)))
    runner = make(checkpoint)
    everything = runner.forward(inputs).logits.clone()

    rows = toys.int32([29, 3, 3])
    some = runner.forward(
        type(inputs)(
            inputs.token_ids,
            inputs.positions,
            inputs.query_starts,
            inputs.context_lens,
            inputs.block_tables,
            rows,
        )
    ).logits

    assert torch.equal(some, everything[torch.from_numpy(rows).long()])


def test_pool_holds_the_keys_and_values_of_the_torch_tier():
    checkpoint = ToyCheckpoint(toy_spec(), "bfloat16")
    inputs = step(whole(*sequences(checkpoint.spec, 33)))
    runner = make(checkpoint, kv_cache_dtype="float32")
    runner.forward(inputs)

    torch_runner = TorchRunner(EngineConfig(dtype="float32", kv_cache_dtype="float32"), checkpoint)
    torch_runner.allocate_kv(NUM_BLOCKS)
    torch_runner.forward(inputs)

    expected = torch_runner.kv_pool()
    assert runner.kv_pool().shape == expected.shape
    torch.testing.assert_close(runner.kv_pool(), expected, atol=0.1, rtol=0.05)


def test_mixed_kinds_in_one_fused_matrix_serve():
    checkpoint = ToyCheckpoint(toy_spec(), "int4")
    eight = ToyCheckpoint(toy_spec(), "int8")
    dense = ToyCheckpoint(toy_spec(), "float32")
    name = "model.layers.0.self_attn.v_proj.weight"
    checkpoint.replace(name, eight.load(name))
    name = "model.layers.1.mlp.up_proj.weight"
    checkpoint.replace(name, dense.load(name))
    inputs = step(whole(*sequences(checkpoint.spec, 21)))

    logits = make(checkpoint).forward(inputs).logits

    assert_close(logits, reference_logits(checkpoint, inputs).logits, "int4")


def test_missing_and_misshapen_tensors_are_named():
    checkpoint = ToyCheckpoint(toy_spec(), "float32")
    checkpoint.replace("model.norm.weight", torch.ones(3))
    with pytest.raises(CheckpointError, match=r"model.norm.weight"):
        make(checkpoint)

    checkpoint = ToyCheckpoint(toy_spec(), "float32")
    checkpoint.remove("model.layers.1.mlp.down_proj.weight")
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.down_proj"):
        make(checkpoint)


def test_what_it_cannot_serve_it_declines_with_a_reason():
    moe = MoeSpec(num_experts=4, experts_per_token=2, intermediate_size=32, norm_topk_prob=True)
    plain = EngineConfig()

    assert native.why_not(plain, toy_spec()) is None
    assert "experts" in native.why_not(plain, toy_spec(architecture="qwen3_moe", moe=moe))
    assert "LoRA" in native.why_not(EngineConfig(enable_lora=True), toy_spec())
    assert "float32" in native.why_not(EngineConfig(dtype="float32"), toy_spec())
    assert "parallel" in native.why_not(EngineConfig(tensor_parallel_size=2), toy_spec())
    assert "head_dim" in native.why_not(plain, toy_spec(head_dim=24))
    with pytest.raises(ConfigError, match="runner"):
        make(ToyCheckpoint(toy_spec(head_dim=24)))


def test_pool_that_does_not_fit_is_refused_with_a_number_that_does():
    runner = make(ToyCheckpoint(toy_spec(), "int8"))

    with pytest.raises(OutOfMemory, match="num_kv_blocks.*lower it to"):
        runner.allocate_kv(1 << 40)


def test_close_may_be_called_twice():
    runner = make(ToyCheckpoint(toy_spec(), "int8"))

    runner.close()
    runner.close()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_ids", [1, 99], "token_ids"),
        ("token_ids", [-1, 0], "token_ids"),
        ("positions", [0, 5], "positions"),
        ("positions", [0, 512], "positions"),
        ("query_starts", [0, 1], "positions"),
        ("query_starts", [0, 0], "query_starts"),
        ("context_lens", [1], "context_lens"),
        ("context_lens", [17], "context_lens"),
        ("block_tables", [[NUM_BLOCKS]], "block_tables"),
        ("block_tables", [[-1]], "block_tables"),
        ("logit_rows", [2], "logit_rows"),
        ("hidden_rows", [-1], "hidden_rows"),
    ],
)
def test_malformed_steps_are_refused_before_anything_is_written(field, value, message):
    checkpoint = ToyCheckpoint(toy_spec(vocab_size=99), "int8")
    runner = make(checkpoint)
    good = step([(Sequence([1, 2], [3]), 0, 2)])

    with pytest.raises(library.NativeError, match=message):
        runner.forward(dataclasses.replace(good, **{field: toys.int32(value)}))

    assert not runner.kv_pool().any()


def test_busy_neighbours_do_not_change_a_result():
    """Threads lose their cores in the middle of jobs here, and the caller does those over."""
    spec = toy_spec(num_heads=6, num_kv_heads=2)
    checkpoint = ToyCheckpoint(spec, "int4")
    first, second = sequences(spec, 140, 60)
    expected = make(checkpoint, num_threads=1).forward(step(whole(first, second))).logits.clone()
    crowded = make(checkpoint, num_threads=8)  # more threads than cores push each other away

    for _ in range(30):
        logits = crowded.forward(step(whole(first, second))).logits
        assert torch.equal(logits, expected)
