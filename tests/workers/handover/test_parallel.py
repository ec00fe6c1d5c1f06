"""Engines of other numbers of ranks hand over to each other: each share goes to its place."""

import random

import pytest
import torch

from stafette.kvtransfer.connectors.p2p.messages import Give, Take
from stafette.workers.config import EngineConfig
from stafette.workers.runner.parallel import ParallelRunner
from stafette.workers.weights.opening import open_checkpoint

BLOCK = 16
LENGTH = 100
RANKS = {"one": 1, "two": 2, "other": 2, "four": 4}  # four: more than the model has KV heads


def flags(folder: str, ranks: int) -> dict:
    return {
        "model": folder,
        "tokenizer": "smollm2",  # the toy has none; its prompts are tokens
        "dtype": "float32",
        "device": "cpu",
        "runner": "torch",
        "tensor_parallel_size": ranks,
        "max_num_seqs": 8,
        "max_model_len": 256,
        "num_kv_blocks": 64,
        "max_num_batched_tokens": 32,
        "num_threads": 1,
    }


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


def prompt(seed: int) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(97) for _ in range(LENGTH)]


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
    prefill, decode = engines[computes], engines[answers]
    name, tokens = f"{computes}-{answers}", prompt(seed=len(computes) + 7 * len(answers))
    alone = engines["one"]
    alone("reset")
    wanted = alone("generate", name="alone", tokens=tokens, max_tokens=12, params={})["tokens"]
    for engine in (prefill, decode):
        engine("reset")
    before = decode("stats")

    take, give = Take(name, (prefill.name,)).params(), Give(name, (decode.name,)).params()
    answer = decode.ask("generate", name=name, tokens=tokens, max_tokens=12, params=take)
    assert prefill("prefill", name=name, tokens=tokens, params=give) == LENGTH // BLOCK * BLOCK

    assert answer.get() == {"tokens": wanted, "cached": LENGTH // BLOCK * BLOCK}
    after = decode("stats")
    assert after["pulled_tokens"] - before["pulled_tokens"] == LENGTH // BLOCK * BLOCK
    assert not after["shortfalls"]
    held = ("held_blocks", "pinned_blocks", "living_leases", "unsettled")
    until(lambda: not any(engine("stats")[n] for engine in (prefill, decode) for n in held))


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
