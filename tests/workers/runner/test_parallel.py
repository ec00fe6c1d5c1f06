"""Two processes against one: the same logits, and an end that names who ended."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.errors import CheckpointError, ConfigError, EngineDead
from stafette.workers.runner.parallel import ParallelRunner
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.weights.opening import open_checkpoint

PROMPT = np.random.default_rng(0).integers(0, 97, 20).astype(np.int32)


@pytest.fixture(scope="module")
def folder(toys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toys.hf("llama").save_pretrained(folder)
    return str(folder)


def config(folder, **flags):
    return EngineConfig(
        model=folder, dtype="float32", device="cpu", runner="torch", enable_lora=True, **flags
    )


def start(folder, **options):
    settings = config(folder, tensor_parallel_size=2)
    runner = ParallelRunner(settings, open_checkpoint(folder, "auto"), **options)
    runner.allocate_kv(8)
    return runner


@pytest.fixture(scope="module")
def pair(folder):
    runner = start(folder)
    yield runner
    processes = runner._ranks
    runner.close()
    assert all(process.has_ended() for process in processes)


@pytest.fixture
def doomed(folder):
    runner = start(folder, step_timeout_s=3.0)
    yield runner
    runner.close()


def step(first, last):
    """The prompt's tokens from `first` up to `last`, all logits wanted."""
    rows = np.arange(last - first, dtype=np.int32)
    return StepInputs(
        token_ids=PROMPT[first:last],
        positions=rows + first,
        query_starts=np.array([0, last - first], np.int32),
        context_lens=np.array([last], np.int32),
        block_tables=np.array([[5, 2]], np.int32),
        logit_rows=rows,
        hidden_rows=rows[-1:],
    )


def test_two_ranks_give_the_logits_of_one(pair, folder):
    alone = TorchRunner(config(folder), open_checkpoint(folder, "auto"))
    alone.allocate_kv(8)

    for first, last in ((0, 17), (17, 18), (18, 20)):
        together, expected = (r.forward(step(first, last)) for r in (pair, alone))

        torch.testing.assert_close(together.logits, expected.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(together.hidden, expected.hidden, atol=1e-4, rtol=0)


def test_a_rank_holds_its_heads_of_every_block(pair):
    assert pair.kv_layout.num_kv_heads == 1
    assert pair.kv_pool().shape == (8, 2, 2, 1, 16, 8)


def test_warm_up_and_free_bytes_ask_every_rank(pair):
    pair.warm_up()

    assert 0 < pair.free_bytes() < pair._local.free_bytes()


def test_an_error_that_all_ranks_see_leaves_them_serving(pair, tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config.json"):
        pair.add_lora(0, str(tmp_path))

    assert torch.isfinite(pair.forward(step(0, 3)).logits).all()


def test_a_killed_rank_is_named_and_the_runner_stays_dead(doomed):
    os.kill(doomed._ranks[0].pid, signal.SIGKILL)

    for _ in range(2):
        with pytest.raises(EngineDead, match="tensor parallel rank 1 = 'killed by SIGKILL'"):
            doomed.forward(step(0, 5))


def test_a_rank_that_hangs_ends_the_step_after_its_deadline(doomed):
    os.kill(doomed._ranks[0].pid, signal.SIGSTOP)

    with pytest.raises(EngineDead, match="tensor parallel"):
        doomed.forward(step(0, 5))

    assert doomed._ranks[0].has_ended()


def test_a_rank_ends_when_its_parent_is_killed():
    script = (
        "from stafette.workers.runner.rank_process import RankProcess; import time\n"
        "rank = RankProcess(1); rank.receive(60); print(rank.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()

    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_rank_that_cannot_open_the_model_says_why(folder):
    settings = config("/no/such/model", tensor_parallel_size=2)

    with pytest.raises(CheckpointError, match="rank 1: .*no/such/model"):
        ParallelRunner(settings, open_checkpoint(folder, "auto"), step_timeout_s=5.0)


def test_a_size_that_does_not_divide_the_heads_names_those_that_do(toys):
    checkpoint = toys.checkpoint(toys.hf("llama", intermediate_size=84))

    with pytest.raises(ConfigError, match="tensor_parallel_size = 4: .*one of 1, 2, 6"):
        ParallelRunner(EngineConfig(tensor_parallel_size=4, device="cpu"), checkpoint)
