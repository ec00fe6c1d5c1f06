"""Log probabilities of chosen tokens, from the logits as the model gave them."""

from collections.abc import Sequence

import numpy as np
import torch

from stafette.workers.batch import TokenLogprobs
from stafette.workers.sampling.drawing import log_mass

_CHUNK = 64  # rows of a prompt scored at once: bounds the copies of their logits


def prompt_logprobs(
    logits: torch.Tensor, targets: Sequence[int], num_top: int
) -> list[TokenLogprobs]:
    """Score a prompt's tokens: `targets[i]` follows the token that row i was computed for."""
    scored = []
    for start in range(0, len(targets), _CHUNK):
        part = targets[start : start + _CHUNK]
        rows = logits[start : start + len(part)]
        scored += token_logprobs(rows, part, [num_top] * len(part))
    return scored


def token_logprobs(
    logits: torch.Tensor, chosen: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Return each row's chosen token and its `num_top` likeliest, with log probabilities."""
    if not chosen:
        return []
    tokens = torch.from_numpy(np.array(chosen, np.int64)).to(logits.device)
    of_chosen = logits.gather(1, tokens[:, None])
    ranks = ((logits > of_chosen).sum(-1) + 1).tolist()
    _, mass = log_mass(logits)
    values = (of_chosen[:, 0].cpu().numpy().astype(np.float64) - mass).tolist()
    tops = _tops(logits, mass, num_top)
    return [
        TokenLogprobs(token, value, rank, top)
        for token, value, rank, top in zip(chosen, values, ranks, tops, strict=True)
    ]


def _tops(logits: torch.Tensor, mass: np.ndarray, num_top: Sequence[int]) -> list[dict[int, float]]:
    most = min(max(num_top), logits.shape[1])
    if most == 0:
        return [{} for _ in num_top]
    best = logits.topk(most)
    ids = best.indices.tolist()
    values = (best.values.cpu().numpy().astype(np.float64) - mass[:, None]).tolist()
    rows = zip(ids, values, num_top, strict=True)
    return [dict(zip(row[:count], some[:count], strict=True)) for row, some, count in rows]
