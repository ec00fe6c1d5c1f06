"""A pool that is shared lies where a transfer agent can offer it, and goes with its runner."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stafette.kvtransfer.memory import SharedMemory
from stafette.workers.config import EngineConfig
from stafette.workers.runner import native
from stafette.workers.runner.native import NativeRunner
from stafette.workers.runner.torch_runner import TorchRunner

_TOYS = Path(__file__).parents[1] / "native" / "toys.py"
_spec = importlib.util.spec_from_file_location("handover_toys", _TOYS)
toys = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toys)

NUM_BLOCKS = 4


@pytest.fixture(params=[NativeRunner, TorchRunner])
def make(request):
    """Make runners of a small random model, with a pool, which are closed in the end."""
    checkpoint = toys.ToyCheckpoint(toys.toy_spec())
    made = []

    def make(shared: bool):
        config = EngineConfig(num_threads=1, device="cpu", share_kv_memory=shared)
        if request.param is NativeRunner and (reason := native.why_not(config, checkpoint.spec)):
            pytest.skip(reason)
        made.append(request.param(config, checkpoint))
        made[-1].allocate_kv(NUM_BLOCKS)
        return made[-1]

    yield make
    for runner in made:
        runner.close()


def logits(runner) -> torch.Tensor:
    """Compute ten tokens, whose KV goes to block 2."""
    tokens = toys.Sequence(list(range(10)), [2])
    return runner.forward(toys.step([(tokens, 0, 10)])).logits.clone()


def test_where_the_pool_lies_changes_no_logit(make):
    own, shared = make(False), make(True)

    assert torch.equal(logits(own), logits(shared))

    assert not isinstance(own.kv_memory(), SharedMemory)


def test_what_peers_can_map_is_the_pool_itself(make):
    runner = make(True)
    memory, pool = runner.kv_memory(), runner.kv_pool()

    logits(runner)
    runner.wait_for_kv()

    assert memory.array.ctypes.data == pool.data_ptr()
    assert memory.nbytes == NUM_BLOCKS * runner.kv_layout.block_bytes
    used = np.flatnonzero(memory.array.reshape(NUM_BLOCKS, -1).any(axis=1))
    assert used.tolist() == [2]
    os.fstat(memory.fd)


def test_its_descriptor_is_given_up_with_the_pool_and_with_the_runner(make):
    runner = make(True)
    first = runner.kv_memory()

    runner.allocate_kv(NUM_BLOCKS)
    second = runner.kv_memory()
    runner.close()

    assert first is not second
    assert first.fd == second.fd == -1
