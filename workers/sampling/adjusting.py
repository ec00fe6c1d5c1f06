"""Changes logits before a token is drawn: bias, a minimum length, penalties, a grammar's mask."""

from collections.abc import Sequence

import numpy as np

from stafette.workers.sampling.logits import Logits
from stafette.workers.sampling.penalties import apply_penalties
from stafette.workers.sampling.state import SequenceState
from stafette.workers.sampling.structured import GrammarCompiler

Rows = Sequence[tuple[SequenceState, int]]  # (sequence, position in its output) of each row


def adjusts(state: SequenceState, position: int) -> bool:
    """Return whether this sequence's logits for output `position` are to be changed."""
    params = state.params
    return bool(state.looks_back or params.logit_bias or position < params.min_tokens)


def adjust(logits: Logits, rows: Rows, grammars: GrammarCompiler | None) -> None:
    """Change each row in place."""
    _add_biases(logits, rows)
    _hold_back_ends(logits, rows)
    counts = [
        (row, state.counts) for row, (state, _) in enumerate(rows) if state.counts is not None
    ]
    apply_penalties(logits, counts)
    if grammars is not None:
        _mask(logits, rows, grammars)


def _add_biases(logits: Logits, rows: Rows) -> None:
    biases = [
        (row, token, bias)
        for row, (state, _) in enumerate(rows)
        for token, bias in state.params.logit_bias.items()
    ]
    if biases:
        where, tokens, added = (np.array(column) for column in zip(*biases, strict=True))
        logits.put(where, tokens, logits.take(where, tokens) + added.astype(np.float32))


def _hold_back_ends(logits: Logits, rows: Rows) -> None:
    held = [
        (row, token)
        for row, (state, position) in enumerate(rows)
        if position < state.params.min_tokens and not _complete(state)
        for token in state.held_back
    ]
    if held:
        where, tokens = np.array(held, np.int64).T
        logits.put(where, tokens, np.full(len(held), -np.inf, np.float32))


def _complete(state: SequenceState) -> bool:
    return state.grammar is not None and state.grammar.finished


def _mask(logits: Logits, rows: Rows, grammars: GrammarCompiler) -> None:
    bound = [(row, state.grammar) for row, (state, _) in enumerate(rows) if state.grammar]
    if bound:
        masks = grammars.masks([matcher for _, matcher in bound])
        for (row, _), allowed in zip(bound, masks, strict=True):
            logits.keep(row, allowed)
