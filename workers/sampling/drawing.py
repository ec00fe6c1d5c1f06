"""Draws a token from each row of logits, without sorting a vocabulary.

Tokens stand in the order of their logit, the lower id first among equals. min_p keeps those at
least min_p as likely as the first, top_k the first k of them, top_p the shortest head of what is
left that holds top_p of its mass. The token is the one in which u of the kept mass falls: counted
along that order or, where every token is kept, block by block.

Nearly always the answer lies among a row's likeliest tokens, so only those are looked at; a row
for which they do not suffice is done again with a bound that provably does.
"""

from dataclasses import dataclass

import numpy as np

from stafette.workers.sampling.head import Head, head_bounds
from stafette.workers.sampling.logits import Bools, Floats, Floats32, Ints, Logits, Scaled

_LEAST, _MOST = 64, 256  # of a row's likeliest tokens are looked at first
_SLACK = 0.01  # in logits: keeps rounding from excluding a token that a bound includes
_BINS_PER_LOGIT = 16
BAD_ROW = -1


@dataclass(frozen=True, slots=True)
class Rules:
    """How each row is to be drawn from; arrays of one entry a row."""

    temperature: Floats32
    top_k: Ints  # 0: all
    top_p: Floats
    min_p: Floats
    uniform: Floats  # the random number in [0, 1) that decides

    def rows(self, rows: Ints) -> "Rules":
        return Rules(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.uniform[rows],
        )

    @property
    def needs_mass(self) -> Bools:
        """Rows whose answer depends on what all of the vocabulary sums up to."""
        needy: Bools = (self.top_k == 0) & (self.min_p == 0)
        return needy


def argmax(logits: Logits) -> Ints:
    """Return each row's likeliest token, or BAD_ROW where its logit is not a finite number."""
    best, peaks = logits.argmax()
    return np.where(np.isfinite(peaks), best, BAD_ROW)


def draw(logits: Logits, rules: Rules) -> Ints:
    """Return one token for each row, or BAD_ROW where the largest logit is not a finite number."""
    rows = np.arange(len(logits))
    parts = np.split(rows, rows[logits.rows_at_once :: logits.rows_at_once])
    if len(parts) == 1:
        return _draw(logits, rules)
    return np.concatenate([_draw(logits.rows(part.tolist()), rules.rows(part)) for part in parts])


def _draw(logits: Logits, rules: Rules) -> Ints:
    scaled = logits.scaled(rules.temperature)
    tokens = np.full(len(logits), BAD_ROW, np.int64)
    good = np.isfinite(scaled.tops)
    free = rules.needs_mass & (rules.top_p >= 1)
    for rows, function in ((good & free, _draw_from_all), (good & ~free, _draw_from_kept)):
        if rows.any():
            wanted = np.flatnonzero(rows)
            tokens[wanted] = function(scaled.rows(wanted), rules.rows(wanted))
    return tokens


def _draw_from_all(scaled: Scaled, rules: Rules) -> Ints:
    """Find the block in which u of the mass falls, then the token in the block."""
    weights = scaled.weigh()
    ends = np.cumsum(weights.sums, axis=-1)
    target = rules.uniform * ends[:, -1]
    blocks = _find(ends, target)
    every = np.arange(len(blocks))
    rest = target - (ends[every, blocks] - weights.sums[every, blocks])
    inside = np.cumsum(weights.blocks(blocks), axis=-1, dtype=np.float64)
    tokens: Ints = _find(inside, rest) * ends.shape[1] + blocks
    return tokens


def _find(ends: Floats, target: Floats) -> Ints:
    """Return each row's first entry that ends after `target`, or its last one that holds mass."""
    passed = (ends <= target[:, None]).sum(-1)
    last = (ends < ends[:, -1:]).sum(-1)
    found: Ints = np.minimum(passed, last)
    return found


def _draw_from_kept(scaled: Scaled, rules: Rules) -> Ints:
    mass = np.full(len(scaled.tops), np.inf)
    needy = np.flatnonzero(rules.needs_mass)
    if len(needy):
        mass[needy] = scaled.rows(needy).weigh().sums.sum(-1)
    looked_at = np.where(rules.needs_mass, _MOST, np.clip(rules.top_k, _LEAST, _MOST))
    head = Head.of(scaled, head_bounds(scaled.peaks, looked_at))
    tokens, certain = _draw_from_head(head, rules, mass)
    for row in np.flatnonzero(~certain).tolist():
        only, values = np.array([row]), scaled.values(row)
        bound = _exact_bound(scaled, rules, row, mass[row])
        again = Head.of_row(values, bound, scaled.tops[row])
        tokens[row] = _draw_from_head(again, rules.rows(only), mass[only])[0][0]
    return tokens


def _draw_from_head(head: Head, rules: Rules, mass: Floats) -> tuple[Ints, Bools]:
    """Return a token for each row, and for which rows the head suffices."""
    every = np.arange(len(mass))
    count, certain = _filtered(head, rules)
    total = np.where(np.isinf(mass), head.ends[every, count - 1], mass)
    nucleus = (head.ends < (rules.top_p * total)[:, None]).sum(-1) + 1
    cut = rules.top_p < 1
    certain &= ~(cut & np.isfinite(mass)) | (nucleus <= head.known) | head.complete
    count = np.where(cut, np.minimum(count, nucleus), count)
    target = rules.uniform * head.ends[every, count - 1]
    picked = np.minimum((head.ends <= target[:, None]).sum(-1), count - 1)
    return head.tokens[every, picked], certain


def _filtered(head: Head, rules: Rules) -> tuple[Ints, Bools]:
    """Return how many tokens pass min_p and top_k, and where that is known for certain."""
    likely = (head.weights >= rules.min_p[:, None]).sum(-1)
    passing = np.where(rules.min_p > 0, likely, head.known)
    certain = rules.needs_mass | head.complete | (passing < head.known)
    limited = rules.top_k > 0
    certain |= limited & (rules.top_k <= head.known)
    return np.where(limited, np.minimum(passing, rules.top_k), passing), certain


def _exact_bound(scaled: Scaled, rules: Rules, row: int, mass: float) -> float:
    """Return a bound that every token of this row reaches which could be kept."""
    values = scaled.values(row)
    top = scaled.tops[row]
    if np.isfinite(mass):
        return _nucleus_bound(values, top, rules.top_p[row], mass)
    lowest = [float(np.finfo(np.float32).min)]
    if rules.min_p[row] > 0:
        lowest.append(float(top + np.log(rules.min_p[row]) - _SLACK))
    if 0 < rules.top_k[row] < len(values):
        lowest.append(_nth_largest(scaled.peaks[row], values, int(rules.top_k[row])))
    return max(lowest)


def _nth_largest(peaks: Floats32, values: Floats32, n: int) -> float:
    """Return a bound that n values reach: the nth peak where there are so many, else the nth."""
    among = peaks if n <= len(peaks) else values
    return float(np.partition(among, len(among) - n)[len(among) - n])


def _nucleus_bound(values: Floats32, top: np.float32, top_p: float, mass: float) -> float:
    """Return a bound at most a bin or two below the last token of the nucleus.

    Tokens lighter than (1 - top_p) mass / V weigh less than 1 - top_p all together, so none of
    them is needed; a histogram of the others shows where top_p of the mass is reached.
    """
    share = np.log((1 - top_p) * mass / len(values)) - _SLACK
    some = values[np.flatnonzero(values >= top + np.float32(share))] - top
    bins = np.bincount((some * -_BINS_PER_LOGIT).astype(np.int64), weights=np.exp(some))
    reached = int(np.searchsorted(np.cumsum(bins), top_p * mass))
    return float(top + max(share, -(reached + 2) / _BINS_PER_LOGIT))
