"""The runner's own duties: devices, dtypes, memory, and what it gives back."""

import numpy as np
import pytest
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.errors import CheckpointError, ConfigError, OutOfMemory
from stafette.workers.runner import device, torch_runner
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(toys):
    return toys.checkpoint(toys.hf("llama"))


def make(checkpoint, **flags):
    defaults = dict(dtype="float32", device="cpu", runner="torch")
    runner = TorchRunner(EngineConfig(**(defaults | flags)), checkpoint)
    runner.allocate_kv(4)
    return runner


def step(tokens, logit_rows=(0,), hidden_rows=()):
    count = len(tokens)
    return StepInputs(
        token_ids=np.array(tokens, np.int32),
        positions=np.arange(count, dtype=np.int32),
        query_starts=np.array([0, count], np.int32),
        context_lens=np.array([count], np.int32),
        block_tables=np.array([[1]], np.int32),
        logit_rows=np.array(logit_rows, np.int32),
        hidden_rows=np.array(hidden_rows, np.int32),
    )


def test_only_the_rows_asked_for_come_back_in_their_order(checkpoint):
    runner = make(checkpoint)
    everything = runner.forward(step([5, 6, 7, 8], range(4))).logits.clone()

    some = runner.forward(step([5, 6, 7, 8], [3, 1])).logits

    torch.testing.assert_close(some, everything[[3, 1]])
    assert some.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_may_want_no_logits(checkpoint, dtype):
    assert make(checkpoint, dtype=dtype).forward(step([5, 6], [])).logits.shape == (0, 97)


def test_hidden_rows_are_those_that_the_logits_come_from(checkpoint):
    runner = make(checkpoint)

    out = runner.forward(step([5, 6, 7], [0, 2], hidden_rows=[0, 2]))

    head = checkpoint.tensors["lm_head.weight"]
    torch.testing.assert_close(out.hidden @ head.T, out.logits, atol=1e-5, rtol=1e-5)


def test_warm_up_writes_nothing_to_the_pool(checkpoint):
    runner = make(checkpoint)

    runner.warm_up()

    assert runner.kv_pool().abs().max() == 0


def test_logits_may_be_changed_in_place_by_who_gets_them(checkpoint):
    make(checkpoint).forward(step([5])).logits.mul_(2).masked_fill_(torch.tensor(True), 0)


@pytest.mark.parametrize("kv_dtype", ["float16", "bfloat16", "fp8"])
def test_a_narrower_pool_keeps_the_logits_close(checkpoint, kv_dtype):
    tokens = list(range(10))
    exact = make(checkpoint).forward(step(tokens, range(10))).logits

    runner = make(checkpoint, kv_cache_dtype=kv_dtype)
    rounded = runner.forward(step(tokens, range(10))).logits

    assert runner.kv_pool().element_size() == (1 if kv_dtype == "fp8" else 2)
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.99


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_on_a_cpu_that_multiplies_it(checkpoint, monkeypatch, supported, dtype):
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: supported)

    assert device.choose_dtype(EngineConfig(), checkpoint.spec, CPU) is dtype


def test_auto_takes_the_checkpoints_dtype_on_a_gpu(checkpoint):
    chosen = device.choose_dtype(EngineConfig(), checkpoint.spec, torch.device("cuda"))

    assert chosen is torch.float32


def test_a_flag_beats_what_suits_the_cpu(checkpoint):
    config = EngineConfig(dtype="float16")

    assert device.choose_dtype(config, checkpoint.spec, CPU) is torch.float16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(ConfigError, match="device = 'cuda'"):
        device.choose_device(EngineConfig(device="cuda"))


def test_bfloat16_and_float16_stay_close_to_float32(checkpoint):
    exact = make(checkpoint).forward(step([5, 6, 7], [2])).logits

    for dtype in ("bfloat16", "float16"):
        rounded = make(checkpoint, dtype=dtype).forward(step([5, 6, 7], [2])).logits
        assert torch.nn.functional.cosine_similarity(exact, rounded) > 0.99


def test_a_pool_larger_than_memory_names_the_flag_and_a_number_that_fits(checkpoint, monkeypatch):
    runner = make(checkpoint)
    monkeypatch.setattr(
        torch_runner, "free_device_bytes", lambda _: 10 * runner.kv_layout.block_bytes
    )

    with pytest.raises(OutOfMemory, match="num_kv_blocks = 11: .* lower it to 10"):
        runner.allocate_kv(11)


def test_a_step_that_does_not_fit_names_the_flag_and_a_number(checkpoint, monkeypatch):
    runner = make(checkpoint)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner.model, "hidden", fail)

    with pytest.raises(OutOfMemory, match="max_num_batched_tokens = 2048: .* lower it to 2"):
        runner.forward(step([1, 2, 3, 4]))


def test_a_step_takes_less_than_free_bytes_sets_aside(checkpoint, monkeypatch):
    runner = make(checkpoint)
    monkeypatch.setattr(torch_runner, "free_device_bytes", lambda _: 1 << 30)

    assert (1 << 30) - runner.free_bytes() > 2048 * 4 * (48 * 6 + 80 * 3)


def test_closing_twice_is_harmless(checkpoint):
    runner = make(checkpoint)

    runner.close()
    runner.close()


def test_a_missing_tensor_is_named(checkpoint, toys):
    broken = toys.checkpoint(toys.hf("llama"))
    del broken.tensors["model.layers.1.mlp.up_proj.weight"]

    with pytest.raises(CheckpointError, match="layers.1.mlp.up_proj"):
        make(broken)


def test_a_tensor_of_the_wrong_shape_names_both_shapes(toys):
    broken = toys.checkpoint(toys.hf("llama"))
    broken.tensors["model.norm.weight"] = torch.ones(47)

    with pytest.raises(CheckpointError, match=r"model.norm.weight = \(47,\): .*\(48,\)"):
        make(broken)
