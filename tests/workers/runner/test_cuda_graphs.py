"""Recorded decode steps, on a fake GPU: it works late, and spoils its inputs after every use."""

import numpy as np
import pytest
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.runner.cuda_graphs import batch_sizes
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner

BLOCK = 4
GARBAGE = 2**30  # no such token, block or length


class FakeGpu:
    """Does nothing until it must: the host runs ahead of it, as of a real one."""

    device = torch.device("cpu")

    def __init__(self):
        self.queue = []
        self.captured = []
        self.replayed = []

    def graph(self):
        return FakeGraph(self)

    def host_buffer(self, size):
        return torch.full((size,), GARBAGE, dtype=torch.int32)

    def copy(self, source, target):
        work = object()
        self.queue.append((work, lambda: target.copy_(source)))
        self.inputs = target
        return lambda: self.drain(until=work)

    def drain(self, until=None):
        while self.queue and (until is None or until in [work for work, _ in self.queue]):
            self.queue.pop(0)[1]()


class FakeGraph:
    def __init__(self, gpu):
        self.gpu = gpu

    def capture(self, run):
        run()  # the warm-up
        self.run = run
        self.size = len(self.gpu.captured)
        self.gpu.captured.append(self)

    def replay(self):
        inputs = self.gpu.inputs
        self.gpu.replayed.append(self)
        self.gpu.queue.append((self, self.run))
        self.gpu.queue.append((None, lambda: inputs.fill_(GARBAGE)))


@pytest.fixture(scope="module")
def checkpoint(toys):
    return toys.checkpoint(toys.hf("qwen3"))


def make_runner(checkpoint, max_num_seqs=20):
    flags = dict(dtype="float32", device="cpu", runner="torch", attention_backend="reference")
    config = EngineConfig(
        **flags, max_num_seqs=max_num_seqs, max_model_len=6 * BLOCK, block_size=BLOCK
    )
    runner = TorchRunner(config, checkpoint)
    runner.allocate_kv(128)
    return runner


@pytest.fixture
def runners(checkpoint):
    """A runner that runs eagerly, and one that replays, and its GPU."""
    eager, replaying, gpu = make_runner(checkpoint), make_runner(checkpoint), FakeGpu()
    replaying.record_graphs(gpu)
    return eager, replaying, gpu


def decode(contexts, seed=0):
    """One token each for sequences of these lengths; sequence i has blocks 6 i + 1 to 6 i + 6."""
    count = len(contexts)
    tables = np.arange(6 * count, dtype=np.int32).reshape(count, 6) + 1
    width = -(-max(contexts) // BLOCK)
    return StepInputs(
        token_ids=np.random.default_rng(seed).integers(0, 97, count, dtype=np.int32),
        positions=np.array(contexts, np.int32) - 1,
        query_starts=np.arange(count + 1, dtype=np.int32),
        context_lens=np.array(contexts, np.int32),
        block_tables=tables[:, :width],
        logit_rows=np.arange(count, dtype=np.int32),
    )


def prompt(tokens):
    count = len(tokens)
    return StepInputs(
        token_ids=np.array(tokens, np.int32),
        positions=np.arange(count, dtype=np.int32),
        query_starts=np.array([0, count], np.int32),
        context_lens=np.array([count], np.int32),
        block_tables=np.array([[1, 2, 3]], np.int32),
        logit_rows=np.array([count - 1], np.int32),
    )


def hidden_of(runner, inputs):
    with torch.no_grad():
        return runner._hidden(inputs)


def test_batch_sizes_grow_and_end_with_the_largest_batch():
    assert batch_sizes(1) == [1]
    assert batch_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert batch_sizes(1000)[-3:] == [480, 496, 512]


def test_every_size_is_recorded_the_largest_first(runners):
    _, replaying, gpu = runners

    sizes = [size for size in reversed(batch_sizes(20))]

    assert len(gpu.captured) == len(sizes)
    assert [replaying._graphs._graphs[size] for size in sizes] == gpu.captured


def test_recording_writes_nothing_to_the_pool(runners):
    assert runners[1].kv_pool().abs().max() == 0


def test_replay_gives_what_eager_steps_give(runners):
    eager, replaying, gpu = runners
    for step in range(8):
        # Batches grow and shrink: 3, 5, 1, 17, … of contexts that grow.
        contexts = [step + 1 + i % 5 for i in range((3, 5, 1, 17, 2, 20, 4, 9)[step])]
        inputs = decode(contexts, seed=step)

        expected = eager.forward(inputs).logits
        hidden = hidden_of(replaying, inputs)
        gpu.drain()
        logits = replaying.model.logits(hidden)

        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(replaying.kv_pool(), eager.kv_pool(), atol=1e-5, rtol=1e-5)
    assert len(gpu.replayed) == 8


def test_smallest_graph_that_holds_the_batch_is_replayed(runners):
    _, replaying, gpu = runners

    for count in (1, 3, 4, 17):
        hidden_of(replaying, decode([2] * count))

    graphs = replaying._graphs._graphs
    assert gpu.replayed == [graphs[1], graphs[4], graphs[4], graphs[20]]


def test_host_that_runs_ahead_spoils_no_step(runners):
    eager, replaying, gpu = runners
    steps = [decode([length] * 3, seed=length) for length in range(1, 7)]

    for inputs in steps:
        expected = eager.forward(inputs).logits
    for inputs in steps:
        hidden = hidden_of(replaying, inputs)
    gpu.drain()

    logits = replaying.model.logits(hidden)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(replaying.kv_pool(), eager.kv_pool(), atol=1e-5, rtol=1e-5)


def test_prompts_and_large_batches_run_eagerly(checkpoint):
    eager, replaying, gpu = make_runner(checkpoint), make_runner(checkpoint, 2), FakeGpu()
    replaying.record_graphs(gpu)

    for inputs in (prompt([1, 2, 3]), decode([2, 3, 4])):
        logits = replaying.forward(inputs).logits
        torch.testing.assert_close(logits, eager.forward(inputs).logits)

    assert gpu.replayed == []


def test_new_pool_forgets_the_graphs_of_the_old(runners):
    _, replaying, gpu = runners

    replaying.allocate_kv(8)
    replaying.forward(decode([1]))

    assert gpu.replayed == []


def test_eager_engine_on_a_cpu_records_nothing(checkpoint):
    runner = make_runner(checkpoint)

    runner.warm_up()

    assert runner._graphs is None
