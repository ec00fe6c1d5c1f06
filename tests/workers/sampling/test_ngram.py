"""N-gram drafts against a search through the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from stafette.workers.config import EngineConfig
from stafette.workers.sampling.ngram import NgramProposer, propose

tokens_lists = st.lists(st.integers(0, 3), max_size=40)


def naive(tokens: list[int], k: int, ngram_min: int, ngram_max: int) -> list[int]:
    for size in range(ngram_max, ngram_min - 1, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[-size:]:
                return tokens[start + size : start + size + k]
    return []


@given(tokens=tokens_lists, k=st.integers(1, 5), least=st.integers(1, 3), more=st.integers(0, 3))
def test_draft_follows_the_latest_copy_of_the_longest_ending(
    tokens: list[int], k: int, least: int, more: int
) -> None:
    assert propose(tokens, k, least, least + more) == naive(tokens, k, least, least + more)


@given(pieces=st.lists(tokens_lists, max_size=6), k=st.integers(1, 5))
def test_growing_text_gives_the_same_drafts_as_a_fresh_look(
    pieces: list[list[int]], k: int
) -> None:
    proposer = NgramProposer(EngineConfig(speculative_ngram_min=2, speculative_ngram_max=3))
    tokens: list[int] = []

    for piece in pieces:
        tokens += piece

        assert proposer.propose(1, tokens, k) == naive(tokens, k, 2, 3)


def test_sequences_do_not_see_each_other() -> None:
    proposer = NgramProposer(EngineConfig())
    proposer.propose(1, [1, 2, 3, 1, 2], 4)

    assert proposer.propose(2, [5, 1, 2], 4) == []


def test_forgotten_sequence_starts_afresh() -> None:
    proposer = NgramProposer(EngineConfig())
    proposer.propose(1, [1, 2, 3, 4, 5, 6], 4)

    proposer.forget(1)

    assert proposer.propose(1, [1, 2, 9, 8, 3, 4], 4) == []
    proposer.forget(1)
    proposer.forget(1)
