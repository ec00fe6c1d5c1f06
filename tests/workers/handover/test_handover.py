"""Real engines: one computes the prompt, another answers, and what breaks costs only time."""

import random

import pytest

from stafette.kvtransfer.connectors.p2p.messages import Give, Take

BLOCK = 16
LENGTHS = [1, 9, 16, 17, 32, 33, 400, 640]


def prompt(length: int, seed: int) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(100, 40_000) for _ in range(length)]


def alone(decode, tokens, **sampling) -> list[int]:
    """Return the answer of one engine that computes everything."""
    decode("reset")
    answer = decode("generate", name="alone", tokens=tokens, max_tokens=12, params={}, **sampling)
    decode("reset")
    return answer["tokens"]


def begin(prefill, decode, tokens, name: str, **sampling):
    """Let one engine compute the prompt and the other answer: return both, under way."""
    take, give = Take(name, (prefill.name,)).params(), Give(name, (decode.name,)).params()
    answer = decode.ask(
        "generate", name=name, tokens=tokens, max_tokens=12, params=take, **sampling
    )
    return prefill.ask("prefill", name=name, tokens=tokens, params=give), answer


def hand_over(prefill, decode, tokens, name: str, **sampling) -> dict:
    computed, answer = begin(prefill, decode, tokens, name, **sampling)
    computed.get()
    return answer.get()


def nothing_is_held(*engines) -> bool:
    names = ("held_blocks", "pinned_blocks", "living_leases", "unsettled")
    return not any(engine("stats")[name] for engine in engines for name in names)


def moved(engine) -> int:
    return sum(engine("stats")["moved_bytes"].values())


@pytest.mark.parametrize("length", LENGTHS)
def test_the_answer_is_that_of_one_engine_alone(pair, until, length):
    prefill, decode = pair
    tokens = prompt(length, seed=length)
    wanted = alone(decode, tokens)
    before, size = moved(decode), decode("stats")["block_bytes"]

    answer = hand_over(prefill, decode, tokens, f"length-{length}")

    blocks = (length - 1) // BLOCK
    assert answer == {"tokens": wanted, "cached": blocks * BLOCK}
    assert moved(decode) - before == blocks * size
    until(lambda: nothing_is_held(prefill, decode))


def test_an_answer_that_is_drawn_is_that_of_one_engine_alone(pair):
    prefill, decode = pair
    tokens, sampling = prompt(100, seed=1), {"temperature": 0.9, "seed": 7}
    wanted = alone(decode, tokens, **sampling)

    assert hand_over(prefill, decode, tokens, "drawn", **sampling)["tokens"] == wanted


def test_only_blocks_that_are_missing_move(pair, until):
    prefill, decode = pair
    first, second = prompt(300, seed=2), prompt(300, seed=2)[:200] + prompt(150, seed=3)
    wanted = alone(decode, second)
    hand_over(prefill, decode, first, "first")
    before, size = moved(decode), decode("stats")["block_bytes"]

    answer = hand_over(prefill, decode, second, "second")

    assert answer == {"tokens": wanted, "cached": 336}
    assert moved(decode) - before == (336 // BLOCK - 200 // BLOCK) * size
    until(lambda: nothing_is_held(prefill, decode))


def test_many_prompts_are_handed_over_side_by_side(pair, until):
    prefill, decode = pair
    prompts = [prompt(80, seed=4)[: 20 * i] + prompt(60 + 17 * i, seed=5 + i) for i in range(6)]
    wanted = [alone(decode, tokens) for tokens in prompts]

    both = [begin(prefill, decode, tokens, f"many-{i}") for i, tokens in enumerate(prompts)]

    assert [answer.get()["tokens"] for _, answer in both] == wanted
    until(lambda: nothing_is_held(prefill, decode))


def test_what_another_engine_has_cached_is_taken_without_computing_it_again(pair, until):
    prefill, decode = pair
    tokens = prompt(200, seed=12)
    wanted = alone(decode, tokens)
    hand_over(prefill, decode, tokens, "computed")
    decode("reset")

    take, give = Take("cached", ("prefill",)).params(), Give("cached", (decode.name,)).params()
    answer = decode.ask("generate", name="cached", tokens=tokens, max_tokens=12, params=take)
    assert prefill("offer", name="cached", tokens=tokens, params=give) == 192

    assert answer.get() == {"tokens": wanted, "cached": 192}
    until(lambda: nothing_is_held(prefill, decode))


def test_a_request_that_is_aborted_on_the_way_leaves_nothing_behind(pair, until, rig):
    prefill, decode = pair
    computed, answer = begin(prefill, decode, prompt(900, seed=13), "aborted")

    decode("cancel", name="aborted")

    with pytest.raises(Exception, match="cancelled"):
        answer.get()
    computed.get()
    until(lambda: nothing_is_held(prefill, decode))


def test_a_prefill_that_is_aborted_or_killed_in_the_middle_costs_the_rest_and_no_token(
    pair, start, know, until
):
    _, decode = pair
    doomed = start(f"doomed-for-{decode.name}", step_s=0.1)
    know(doomed, decode)
    for end, tokens in (("aborted", prompt(900, seed=14)), ("killed", prompt(900, seed=15))):
        wanted = alone(decode, tokens)
        before, shortfalls = moved(decode), decode("stats")["shortfalls"]

        name = f"midway-{end}"  # no hand-off has the name of another one
        _, answer = begin(doomed, decode, tokens, name)
        until(lambda before=before: moved(decode) > before)
        doomed("cancel", name=name) if end == "aborted" else doomed.kill()

        told = answer.get()
        assert told["tokens"] == wanted
        assert 0 < told["cached"] < 896
        assert decode("stats")["shortfalls"] == shortfalls + 1
        until(lambda: nothing_is_held(decode))
        assert end == "killed" or nothing_is_held(doomed)


def test_a_decode_that_dies_gives_its_leases_up_by_their_time(start, know, until):
    prefill, doomed = start("owner", lease={"ttl_s": 1.0}), start("doomed")
    know(prefill, doomed)
    _, answer = begin(prefill, doomed, prompt(100, seed=15), "once")
    answer.get()
    computed = prefill.ask(
        "prefill", name="again", tokens=prompt(400, seed=16), params=Give("x", ("doomed",)).params()
    )

    doomed.kill()

    computed.get()
    until(lambda: nothing_is_held(prefill))
