"""Prompts have the tokens that were asked for."""

import pytest

from stafette.platform.bench.words import COMMON, Speller, local_counter, usable_words
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.prompts import Piece


async def test_words_of_several_tokens_are_left_out():
    split = {"people", "through"}

    async def count(text: str) -> int:
        return sum(2 if word in split else 1 for word in text.split())

    assert await usable_words(count) == tuple(
        word for word in dict.fromkeys(COMMON) if word not in split
    )


async def test_a_tokenizer_without_these_words_asks_for_another():
    async def letters(text: str) -> int:
        return len(text)

    with pytest.raises(InvalidSetting, match="--tokenizer"):
        await usable_words(letters)


async def test_prompts_for_the_embedded_model_are_exact():
    count = local_counter("smollm2")
    speller = Speller(await usable_words(count), "any")

    for tokens in (1, 17, 500):
        assert await count(speller.text([Piece(7, tokens)])) == tokens


def test_equal_pieces_are_equal_words_of_one_salt():
    speller, other = Speller(COMMON, "a"), Speller(COMMON, "b")
    shared = [Piece(1, 50)]

    long = speller.text([*shared, Piece(2, 50)])

    assert long.startswith(speller.text(shared))
    assert not other.text(shared).startswith(speller.text(shared)[:40])
