"""What engines with several ranks have in common: a toy, its prompts, and one answer for all."""

import random

from stafette.kvtransfer.connectors.p2p.messages import Give, Take

BLOCK = 16
LENGTH = 100
WHOLE = LENGTH // BLOCK * BLOCK


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


def prompt(seed: int) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(97) for _ in range(LENGTH)]


def agents(engine) -> tuple[str, ...]:
    """Return the names of all that offer its blocks, a host each."""
    return (engine.name, *(name for name, _ in engine("members")))


def held(*engines) -> bool:
    names = ("held_blocks", "pinned_blocks", "living_leases", "unsettled")
    return any(engine("stats")[name] for engine in engines for name in names)


def answer_as_alone(engines, computes: str, answers: str) -> None:
    """Let one engine compute a prompt and another answer it: as the engine `one` does by itself."""
    prefill, decode, alone = engines[computes], engines[answers], engines["one"]
    name, tokens = f"{computes}-{answers}", prompt(seed=len(computes) + 7 * len(answers))
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
