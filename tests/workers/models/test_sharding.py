"""Every architecture cut in two and three, the ranks being threads that meet in memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.models.sharding import SOLO, TensorParallel
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner

CONFIG = EngineConfig(dtype="float32", device="cpu", runner="torch", attention_backend="torch")
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


class Done:
    def wait(self):
        return True


class Meeting:
    """One rank's end of a group whose ranks are threads."""

    def __init__(self, rank, shared, barrier):
        self.rank, self.shared, self.barrier = rank, shared, barrier

    def allreduce(self, tensors):
        everyone = self._exchange(tensors[0])
        tensors[0].copy_(torch.stack(everyone).sum(0))
        return Done()

    def allgather(self, outputs, inputs):
        for into, tensor in zip(outputs[0], self._exchange(inputs[0]), strict=True):
            into.copy_(tensor)
        return Done()

    def _exchange(self, tensor):
        self.shared[self.rank] = tensor.clone()
        self.barrier.wait(timeout=20)
        everyone = [self.shared[rank] for rank in sorted(self.shared)]
        self.barrier.wait(timeout=20)
        return everyone


def logits(checkpoint, tp=SOLO):
    tokens = np.random.default_rng(1).integers(0, 97, 21).astype(np.int32)
    rows = np.arange(21, dtype=np.int32)
    starts, lens = np.array([0, 21], np.int32), np.array([21], np.int32)
    runner = TorchRunner(CONFIG, checkpoint, tp)
    runner.allocate_kv(4)
    tables = np.array([[3, 1]], np.int32)
    return runner.forward(StepInputs(tokens, rows, starts, lens, tables, rows)).logits


@pytest.mark.parametrize(
    ("architecture", "overrides", "size"),
    [
        ("llama", {}, 2),
        ("llama", dict(num_key_value_heads=1, intermediate_size=84), 3),
        ("llama", dict(num_key_value_heads=1, tie_word_embeddings=True), 2),
        ("llama", dict(attention_bias=True, mlp_bias=True), 2),
        ("mistral", dict(sliding_window=5), 2),
        ("qwen2", {}, 2),
        ("qwen3", {}, 2),
        ("qwen3_moe", MOE, 2),
        ("qwen3_moe", MOE | dict(mlp_only_layers=[0]), 2),
    ],
)
def test_ranks_together_give_the_logits_of_one(toys, architecture, overrides, size):
    checkpoint = toys.checkpoint(toys.hf(architecture, **overrides))
    shared, barrier = {}, threading.Barrier(size)
    ranks = [TensorParallel(r, size, Meeting(r, shared, barrier)) for r in range(size)]

    with ThreadPoolExecutor(size) as pool:
        everyone = list(pool.map(lambda tp: logits(checkpoint, tp), ranks))

    for ours in everyone:
        torch.testing.assert_close(ours, logits(checkpoint), atol=1e-4, rtol=0)
