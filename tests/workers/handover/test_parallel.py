"""Engines of other numbers of ranks hand over to each other: each share goes to its place."""

import pytest
import torch
from tests.workers.handover.between_ranks import answer_as_alone, flags, held

from stafette.workers.config import EngineConfig
from stafette.workers.runner.parallel import ParallelRunner
from stafette.workers.weights.opening import open_checkpoint

RANKS = {"one": 1, "two": 2, "other": 2, "four": 4}  # four: more than the model has KV heads


@pytest.fixture(scope="module")
def engines(toys, tmp_path_factory, make_process, know):
    folder = tmp_path_factory.mktemp("toy")
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 96}
    toys.hf("llama", **heads).save_pretrained(folder)
    engines = {
        name: make_process(name, flags=flags(str(folder), ranks)) for name, ranks in RANKS.items()
    }
    know(*engines.values())
    yield engines
    assert [engine.close() for engine in engines.values()] == [0] * len(engines)


@pytest.mark.parametrize(
    ("computes", "answers"),
    [
        ("one", "two"),
        ("two", "one"),
        ("two", "other"),
        ("two", "four"),
        ("four", "one"),
    ],
)
def test_the_answer_is_that_of_one_rank_alone(engines, until, computes, answers):
    answer_as_alone(engines, computes, answers)
    until(lambda: not held(engines[computes], engines[answers]))


def test_the_first_rank_offers_the_memory_of_all(toys, tmp_path):
    toys.hf("llama").save_pretrained(tmp_path)
    config = EngineConfig(**flags(str(tmp_path), 2), share_kv_memory=True)
    runner = ParallelRunner(config, open_checkpoint(config.model, "auto"))
    try:
        runner.allocate_kv(4)
        first, second = runner.kv_memories()
        second.buffer.array[:] = 7

        assert (first.layout.first_kv_head, second.layout.first_kv_head) == (0, 1)
        assert first.buffer.nbytes == second.buffer.nbytes == 4 * first.layout.block_bytes
        assert not first.buffer.array.any()
        assert torch.equal(runner.kv_pool(), torch.zeros_like(runner.kv_pool()))
        with pytest.raises(PermissionError):  # a third process
            type(second.buffer).join("kv", second.buffer.fd)
    finally:
        runner.close()
