"""Prompts become chains; a conversation is hashed from where its latest prompt ended."""

import numpy as np
import pytest

from stafette.kvtransfer.blocks import Extras
from stafette.router.errors import InvalidValue
from stafette.router.hashing import Hashers, PromptHasher

TOKENS = list(range(100, 160))


def hasher(max_sessions=10) -> PromptHasher:
    return PromptHasher(Hashers("key", 4), max_sessions)


def test_chain_is_that_of_the_block_hasher():
    prompts = hasher()

    chain = prompts.chain(TOKENS[:11], "m", Extras(salt="t"))

    expected = prompts.hashers.of("m").hash_blocks(TOKENS[:11], extras=Extras(salt="t"))
    assert chain == b"".join(expected)
    assert len(chain) == 2 * 16


def test_growing_prompt_of_a_session_is_hashed_only_where_it_grew():
    prompts = hasher()
    prompts.chain(TOKENS[:22], session="s")

    chain = prompts.chain(TOKENS[:40], session="s")

    assert chain == hasher().chain(TOKENS[:40])
    assert prompts.counters.blocks == 5 + 10
    assert prompts.counters.hashed_blocks == 5 + 5


@pytest.mark.parametrize(
    ("tokens", "model", "extras"),
    [
        ([1, *TOKENS[1:40]], "m", Extras()),  # another beginning
        (TOKENS[:16], "m", Extras()),  # shorter
        (TOKENS[:40], "n", Extras()),
        (TOKENS[:40], "m", Extras(lora="a")),
    ],
)
def test_session_that_does_not_go_on_where_it_was_is_hashed_anew(tokens, model, extras):
    prompts = hasher()
    prompts.chain(TOKENS[:22], "m", session="s")

    chain = prompts.chain(tokens, model, extras, session="s")

    assert chain == hasher().chain(tokens, model, extras)
    assert prompts.counters.hashed_blocks == 5 + len(chain) // 16


def test_lists_and_arrays_of_tokens_are_the_same_prompt():
    prompts = hasher()
    prompts.chain(TOKENS[:22], session="s")

    chain = prompts.chain(np.array(TOKENS[:40]), session="s")

    assert chain == hasher().chain(TOKENS[:40])
    assert prompts.counters.hashed_blocks == 10


def test_only_the_sessions_used_last_are_remembered():
    prompts = hasher(max_sessions=2)
    for session in ("a", "b", "a", "c"):
        prompts.chain(TOKENS[:8], session=session)

    counts = []
    for session in ("a", "b"):
        before = prompts.counters.hashed_blocks
        prompts.chain(TOKENS[:8], session=session)
        counts.append(prompts.counters.hashed_blocks - before)

    assert counts == [0, 2]


def test_forgotten_session_begins_anew():
    prompts = hasher()
    prompts.chain(TOKENS[:8], session="s")

    prompts.forget("s")
    prompts.chain(TOKENS[:8], session="s")

    assert prompts.counters.hashed_blocks == 4


def test_prompt_shorter_than_a_block_has_no_chain():
    assert hasher().chain([1, 2, 3], session="s") == b""


def test_negative_number_of_sessions_is_refused():
    with pytest.raises(InvalidValue, match="max_sessions = -1"):
        hasher(max_sessions=-1)
