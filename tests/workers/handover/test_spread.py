"""Engines whose ranks are on several nodes hand over to others, and to each other."""

import random

import pytest

from stafette.kvtransfer.connectors.p2p.messages import Give, Take

BLOCK = 16
LENGTH = 100
WHOLE = LENGTH // BLOCK * BLOCK
SHAPES = {"one": (1, 1), "wide": (2, 2), "wider": (4, 2)}  # ranks, and the nodes that have them


@pytest.fixture(scope="module")
def engines(toys, tmp_path_factory, make_process):
    folder = str(tmp_path_factory.mktemp("toy"))
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 96}
    toys.hf("llama", **heads).save_pretrained(folder)
    flags = {
        "model": folder,
        "tokenizer": "smollm2",  # the toy has none; its prompts are tokens
        "dtype": "float32",
        "device": "cpu",
        "runner": "torch",
        "max_model_len": 256,
        "num_kv_blocks": 64,
        "max_num_batched_tokens": 32,
        "num_threads": 1,
    }
    engines = {}
    for name, (ranks, nodes) in SHAPES.items():
        spread = {"num_nodes": nodes} if nodes > 1 else {}
        own = flags | {"tensor_parallel_size": ranks}
        engines[name] = make_process(name, flags=own, **spread)
    introduce(engines)
    yield engines
    assert [engine.close() for engine in engines.values()] == [0] * len(engines)


def introduce(engines) -> None:
    told = {name: [engine.metadata] for name, engine in engines.items()}
    for name, engine in engines.items():
        told[name] += [metadata for _, metadata in engine("members")]
    for name, engine in engines.items():
        for metadata in [m for other, each in told.items() if other != name for m in each]:
            engine("add_peer", metadata=metadata)


def agents(engine) -> tuple[str, ...]:
    return (engine.name, *(name for name, _ in engine("members")))


def prompt(seed: int) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(97) for _ in range(LENGTH)]


def held(*engines) -> bool:
    names = ("held_blocks", "pinned_blocks", "living_leases", "unsettled")
    return any(engine("stats")[name] for engine in engines for name in names)


@pytest.mark.parametrize(
    ("computes", "answers"),
    [("one", "wide"), ("wide", "one"), ("wide", "wider"), ("wider", "wide"), ("one", "wider")],
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

    take, give = Take(name, agents(prefill)).params(), Give(name, agents(decode)).params()
    answer = decode.ask("generate", name=name, tokens=tokens, max_tokens=12, params=take)
    assert prefill("prefill", name=name, tokens=tokens, params=give) == WHOLE

    assert answer.get() == {"tokens": wanted, "cached": WHOLE}
    after = decode("stats")
    assert after["pulled_tokens"] - before["pulled_tokens"] == WHOLE
    assert not after["shortfalls"]
    until(lambda: not held(prefill, decode))


def test_a_prompt_that_is_given_up_is_given_up_on_all_nodes(engines, until):
    prefill, decode = engines["wide"], engines["wider"]
    tokens = prompt(seed=1)
    take = Take("given up", agents(prefill)).params()

    answer = decode.ask("generate", name="left", tokens=tokens, max_tokens=4, params=take)
    until(lambda: decode("stats")["held_blocks"])
    decode("cancel", name="left")
    with pytest.raises(Exception, match="cancelled"):
        answer.get()

    until(lambda: not held(decode))
    give = Give("given up", agents(decode)).params()
    prefill("prefill", name="late", tokens=tokens, params=give)
    until(lambda: not held(prefill, decode))
