"""Changes logits before a token is drawn: bias, a minimum length, penalties, a grammar's mask."""

from collections.abc import Sequence

import torch

from stafette.workers.sampling.penalties import apply_penalties
from stafette.workers.sampling.state import SequenceState
from stafette.workers.sampling.structured import GrammarCompiler


def adjusts(state: SequenceState, position: int) -> bool:
    """Return whether this sequence's logits for output `position` are to be changed."""
    params = state.params
    return bool(state.looks_back or params.logit_bias or position < params.min_tokens)


def adjust(
    logits: torch.Tensor,
    rows: Sequence[tuple[SequenceState, int]],
    grammars: GrammarCompiler | None,
) -> None:
    """Change each row in place, for (sequence, output position)."""
    _add_biases(logits, rows)
    _hold_back_ends(logits, rows)
    counts = [(row, state.counts) for row, (state, _) in enumerate(rows) if state.counts]
    apply_penalties(logits, counts)
    if grammars is not None:
        _mask(logits, rows, grammars)


def _add_biases(logits: torch.Tensor, rows: Sequence[tuple[SequenceState, int]]) -> None:
    biases = [
        (row, token, bias)
        for row, (state, _) in enumerate(rows)
        for token, bias in state.params.logit_bias.items()
    ]
    if biases:
        where, tokens, values = zip(*biases, strict=True)
        added = torch.tensor(values, dtype=torch.float32, device=logits.device)
        logits[list(where), list(tokens)] += added


def _hold_back_ends(logits: torch.Tensor, rows: Sequence[tuple[SequenceState, int]]) -> None:
    held = [
        (row, token)
        for row, (state, position) in enumerate(rows)
        if position < state.params.min_tokens and not _complete(state)
        for token in state.held_back
    ]
    if held:
        where, tokens = zip(*held, strict=True)
        logits[list(where), list(tokens)] = -torch.inf


def _complete(state: SequenceState) -> bool:
    return state.grammar is not None and state.grammar.finished


def _mask(
    logits: torch.Tensor, rows: Sequence[tuple[SequenceState, int]], grammars: GrammarCompiler
) -> None:
    bound = [(row, state.grammar) for row, (state, _) in enumerate(rows) if state.grammar]
    if not bound:
        return
    allowed = grammars.masks([matcher for _, matcher in bound])
    where = torch.tensor([row for row, _ in bound], device=logits.device)
    forbidden = torch.from_numpy(~allowed).to(logits.device)
    logits[where] = logits[where].masked_fill(forbidden, -torch.inf)
