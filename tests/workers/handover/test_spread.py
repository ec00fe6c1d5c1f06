"""Engines whose ranks are on several nodes hand over to others, and to each other."""

import pytest
from tests.workers.handover.between_ranks import agents, answer_as_alone, flags, held, prompt

from stafette.kvtransfer.connectors.p2p.messages import Give, Take

SHAPES = {"one": (1, 1), "wide": (2, 2), "wider": (4, 2)}  # ranks, and the nodes that have them


@pytest.fixture(scope="module")
def engines(toys, tmp_path_factory, make_process):
    folder = str(tmp_path_factory.mktemp("toy"))
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 96}
    toys.hf("llama", **heads).save_pretrained(folder)
    engines = {}
    for name, (ranks, nodes) in SHAPES.items():
        spread = {"num_nodes": nodes} if nodes > 1 else {}
        engines[name] = make_process(name, flags=flags(folder, ranks), **spread)
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


@pytest.mark.parametrize(
    ("computes", "answers"),
    [("one", "wide"), ("wide", "one"), ("wide", "wider"), ("wider", "wide"), ("one", "wider")],
)
def test_the_answer_is_that_of_one_rank_alone(engines, until, computes, answers):
    answer_as_alone(engines, computes, answers)
    until(lambda: not held(engines[computes], engines[answers]))


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
