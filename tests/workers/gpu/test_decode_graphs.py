"""CUDA graphs on a real GPU: what they replay is what eager steps give."""

import numpy as np
import pytest
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
BLOCK = 16


@pytest.fixture(scope="module")
def checkpoint(toys):
    return toys.checkpoint(toys.hf("qwen3"))


def make_runner(checkpoint, **flags):
    config = EngineConfig(
        dtype="float32", device="cuda", runner="torch", max_model_len=64, max_num_seqs=20, **flags
    )
    runner = TorchRunner(config, checkpoint)
    runner.allocate_kv(128)
    runner.warm_up()
    return runner


def decode(contexts, seed):
    count = len(contexts)
    tables = np.arange(4 * count, dtype=np.int32).reshape(count, 4) + 1
    return StepInputs(
        token_ids=np.random.default_rng(seed).integers(0, 97, count, dtype=np.int32),
        positions=np.array(contexts, np.int32) - 1,
        query_starts=np.arange(count + 1, dtype=np.int32),
        context_lens=np.array(contexts, np.int32),
        block_tables=tables[:, : -(-max(contexts) // BLOCK)],
        logit_rows=np.arange(count, dtype=np.int32),
    )


def test_replayed_steps_give_what_eager_steps_give(checkpoint):
    eager = make_runner(checkpoint, enforce_eager=True)
    replaying = make_runner(checkpoint)
    assert replaying._graphs is not None

    for step in range(40):
        contexts = [step + 1 + i % 5 for i in range((3, 5, 1, 17, 2, 20, 4, 9)[step % 8])]
        inputs = decode(contexts, step)
        expected = eager.forward(inputs).logits
        logits = replaying.forward(inputs).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(replaying.kv_pool(), eager.kv_pool(), atol=1e-4, rtol=1e-4)


def test_host_that_runs_ahead_spoils_no_step(checkpoint):
    eager = make_runner(checkpoint, enforce_eager=True)
    replaying = make_runner(checkpoint)
    steps = [decode([length] * 20, length) for length in range(1, 60)]

    for inputs in steps:
        expected = eager.forward(inputs).logits
    for inputs in steps:
        logits = replaying.forward(inputs).logits  # nothing waits for the device in between

    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(replaying.kv_pool(), eager.kv_pool(), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_recorded_steps_read_nothing_on_the_host(checkpoint):
    replaying = make_runner(checkpoint)
    inputs = decode([5, 9, 12], 0)
    replaying.forward(inputs)

    torch.cuda.set_sync_debug_mode("error")
    try:
        replaying._hidden(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
