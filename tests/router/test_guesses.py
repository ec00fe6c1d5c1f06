"""What a target probably holds: for a time after the decision, or as much as it has room for."""

import hashlib

import pytest

from stafette.router.errors import InvalidValue
from stafette.router.guesses import GuessConfig, Guesses

WIDTH = 16


def chain_of(name: str) -> bytes:
    return b"".join(
        hashlib.blake2b(name[: end + 1].encode(), digest_size=WIDTH).digest()
        for end in range(len(name))
    )


def depths(guesses: Guesses, name: str, now: float) -> dict[int, int]:
    best: dict[int, int] = {}
    for places, reached in guesses.match(chain_of(name), WIDTH, now):
        for place in places:
            best[place] = max(best.get(place, 0), reached[0])
    return best


def test_decision_is_remembered_for_its_time(make_table):
    guesses = Guesses(make_table(), GuessConfig(ttl_s=10.0, generations=3))
    guesses.add_place(4)

    guesses.remember(4, chain_of("abc"), WIDTH, now=100.0)

    assert depths(guesses, "abcd", 109.9) == {4: 3}
    assert depths(guesses, "abcd", 110.0) == {}
    assert len(guesses) == 0


def test_every_decision_lives_at_least_the_time_less_one_part_and_at_most_the_time(make_table):
    guesses = Guesses(make_table(), GuessConfig(ttl_s=10.0, generations=5))
    guesses.add_place(0)
    for number in range(200):
        guesses.remember(0, chain_of(f"{number}:"), WIDTH, now=number * 0.3)

    for now in (60.0, 63.0, 65.0):
        for number in range(200):
            age = now - number * 0.3
            prompt = f"{number}:"
            if age < 7.5 - 0.31:
                assert depths(guesses, prompt, now)[0] == len(prompt)
            elif age > 10.0:
                assert depths(guesses, prompt, now).get(0, 0) < len(prompt)


def test_repeated_decision_begins_its_time_anew(make_table):
    guesses = Guesses(make_table(), GuessConfig(ttl_s=10.0, generations=3))
    guesses.add_place(0)

    for now in (0.0, 6.0, 12.0):
        guesses.remember(0, chain_of("ab"), WIDTH, now)

    assert depths(guesses, "ab", 16.0) == {0: 2}


def test_place_holds_as_much_as_it_has_room_for(make_table):
    guesses = Guesses(make_table(), GuessConfig(ttl_s=None, generations=5))
    guesses.add_place(0, capacity_blocks=40)
    for number in range(100):
        guesses.remember(0, chain_of(f"{number:02}..........")[-160:], WIDTH, now=0.0)

    known = [
        number
        for number in range(100)
        if guesses.match(chain_of(f"{number:02}..........")[-160:], WIDTH, 1e9)
    ]

    assert 30 <= 10 * len(known) <= 50
    assert known == list(range(100 - len(known), 100))


def test_forgotten_place_is_empty_and_can_be_used_again(make_table):
    guesses = Guesses(make_table(), GuessConfig(ttl_s=10.0))
    guesses.add_place(0)
    guesses.add_place(1)
    for place in (0, 1):
        guesses.remember(place, chain_of("ab"), WIDTH, 0.0)

    guesses.forget(0)

    assert depths(guesses, "ab", 1.0) == {1: 2}
    guesses.remember(0, chain_of("abc"), WIDTH, 2.0)
    assert depths(guesses, "abc", 3.0) == {0: 3, 1: 2}
    assert depths(guesses, "abc", 11.0) == {0: 3}


def test_place_without_time_or_size_is_refused(make_table):
    guesses = Guesses(make_table(), GuessConfig(ttl_s=None))

    with pytest.raises(InvalidValue, match="capacity_blocks"):
        guesses.add_place(0)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"ttl_s": 0.0}, "guess.ttl_s"), ({"generations": 1}, "guess.generations")],
)
def test_bad_configuration_names_its_field(options, field):
    with pytest.raises(InvalidValue, match=field):
        GuessConfig(**options)
