"""Two real engines: one computes the prompt, the other answers, and what breaks costs only time."""

import random

import pytest

from stafette.kvtransfer.connectors.p2p.messages import Give, Take

BLOCK = 16
LENGTHS = [1, 9, 15, 16, 17, 32, 33, 64, 65, 400, 640]


def prompt(length: int, seed: int) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(100, 40_000) for _ in range(length)]


def alone(decode, tokens, max_tokens: int = 12, **sampling) -> list[int]:
    """Return the answer of one engine that computes everything."""
    decode("reset")
    answer = decode(
        "generate", name="alone", tokens=tokens, max_tokens=max_tokens, params={}, **sampling
    )
    decode("reset")
    return answer["tokens"]


def hand_over(prefill, decode, tokens, name: str, max_tokens: int = 12, **sampling) -> dict:
    """Let one engine compute the prompt and the other answer, both at once."""
    take, give = Take(name, ("prefill",)).params(), Give(name, ("decode",)).params()
    answer = decode.ask(
        "generate", name=name, tokens=tokens, max_tokens=max_tokens, params=take, **sampling
    )
    prefill("prefill", name=name, tokens=tokens, params=give)
    return answer.get()


def nothing_is_held(engine) -> bool:
    stats = engine("stats")
    names = ("held_blocks", "pinned_blocks", "living_leases", "unsettled")
    return not any(stats[name] for name in names)


def moved(engine) -> int:
    return sum(engine("stats")["moved_bytes"].values())


@pytest.mark.parametrize("length", LENGTHS)
def test_the_answer_is_that_of_one_engine_alone(lasting, until, length):
    prefill, decode = lasting
    tokens = prompt(length, seed=length)
    wanted = alone(decode, tokens)
    before, size = moved(decode), decode("stats")["block_bytes"]

    answer = hand_over(prefill, decode, tokens, f"length-{length}")

    blocks = (length - 1) // BLOCK
    assert answer == {"tokens": wanted, "cached": blocks * BLOCK}
    assert moved(decode) - before == blocks * size
    until(lambda: nothing_is_held(prefill) and nothing_is_held(decode))
