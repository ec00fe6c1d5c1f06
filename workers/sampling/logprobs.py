"""Log probabilities of chosen tokens, from the logits as the model gave them."""

from collections.abc import Sequence

import numpy as np
import torch

from stafette.workers.batch import TokenLogprobs
from stafette.workers.sampling.head import Head, head_bounds
from stafette.workers.sampling.logits import Floats, Logits, Scaled
from stafette.workers.sampling.placing import wrap


def prompt_logprobs(
    logits: torch.Tensor, targets: Sequence[int], num_top: int
) -> list[TokenLogprobs]:
    """Score a prompt's tokens: `targets[i]` follows the token that row i was computed for."""
    return token_logprobs(wrap(logits), targets, [num_top] * len(targets))


def token_logprobs(
    logits: Logits, chosen: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Return each row's chosen token and its `num_top` likeliest, with log probabilities."""
    scored = []
    for start in range(0, len(chosen), logits.rows_at_once):
        part = range(start, min(start + logits.rows_at_once, len(chosen)))
        wanted = slice(part.start, part.stop)
        scored += _score(logits.rows(part), chosen[wanted], num_top[wanted])
    return scored


def _score(logits: Logits, chosen: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    rows = len(chosen)
    of_chosen = logits.take(np.arange(rows), np.array(chosen, np.int64))
    ranks = (logits.count_above(of_chosen) + 1).tolist()
    scaled = logits.scaled(np.ones(rows, np.float32))
    with np.errstate(invalid="ignore"):  # a prompt's broken row scores NaN
        mass = scaled.tops + np.log(scaled.weigh().sums.sum(-1))
    values = (of_chosen - mass).tolist()
    tops = _tops(scaled, mass, num_top)
    return [
        TokenLogprobs(token, value, rank, top)
        for token, value, rank, top in zip(chosen, values, ranks, tops, strict=True)
    ]


def _tops(scaled: Scaled, mass: Floats, num_top: Sequence[int]) -> list[dict[int, float]]:
    most = max(num_top)
    if most == 0:
        return [{} for _ in num_top]
    head = Head.of(scaled, head_bounds(scaled.peaks, np.full(len(num_top), most)))
    ids = head.tokens[:, :most].tolist()
    values = (head.logits - mass[:, None])[:, :most].tolist()
    counts = np.minimum(num_top, head.known).tolist()
    rows = zip(ids, values, counts, strict=True)
    return [dict(zip(row[:count], some[:count], strict=True)) for row, some, count in rows]
