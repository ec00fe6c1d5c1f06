"""A pool that is shared lies where a transfer agent can offer it, and goes with its engine."""

import os

import numpy as np
import pytest

from stafette.kvtransfer.memory import SharedMemory
from stafette.workers import LLM, SamplingParams

FLAGS = {"max_num_seqs": 2, "max_model_len": 64, "num_kv_blocks": 8, "num_threads": 1}
GREEDY = SamplingParams(temperature=0.0, max_tokens=4)


@pytest.fixture(params=["native", "torch"])
def make(request):
    """Make engines that are closed in the end."""
    made: list[LLM] = []

    def make(shared: bool) -> LLM:
        made.append(LLM(**FLAGS, runner=request.param, share_kv_memory=shared))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def answer(llm: LLM) -> list[int]:
    return llm.generate("One, two, three,", GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def test_where_the_pool_lies_changes_no_answer(make):
    own, shared = make(False), make(True)

    assert answer(own) == answer(shared)

    assert not isinstance(own.engine.executor.runner.kv_memory(), SharedMemory)


def test_what_peers_can_map_is_the_pool_itself(make):
    llm = make(True)
    runner = llm.engine.executor.runner
    memory, pool = runner.kv_memory(), runner.kv_pool()

    answer(llm)

    assert memory.array.ctypes.data == pool.data_ptr()
    assert memory.nbytes == len(pool) * runner.kv_layout.block_bytes
    used = np.flatnonzero(memory.array.reshape(len(pool), -1).any(axis=1))
    assert len(used) == 1  # the prompt and its answer fit into one block
    os.fstat(memory.fd)


def test_its_descriptor_is_given_up_with_the_pool_and_with_the_engine(make):
    llm = make(True)
    runner = llm.engine.executor.runner
    first = runner.kv_memory()

    runner.allocate_kv(8)
    second = runner.kv_memory()
    llm.close()

    assert first is not second
    assert first.fd == second.fd == -1
