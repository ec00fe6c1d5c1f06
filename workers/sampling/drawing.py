"""Draws a token from each row of logits, without sorting a vocabulary.

Tokens stand in the order of their logit, the lower id first among equals. min_p keeps those at
least min_p as likely as the first, top_k the first k of them, top_p the shortest head of what is
left that holds top_p of its mass. The token is the one in which u of the kept mass falls: counted
along that order or, where every token is kept, along the ids.

Nearly always the answer lies among a row's likeliest tokens, so only those leave the device; a row
for which they do not suffice is done again with a bound that provably does. Reductions run in a
shape of their own for each row, so that a row's token depends on nothing but the row.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_HEAD = 64  # a row's likeliest tokens that are looked at first, at least
_MAX_BLOCK = 256  # tokens
_LOWEST = float(np.finfo(np.float32).min)
_SLACK = 0.01  # in logits: keeps float32 from excluding a token that the bound includes
BAD_ROW = -1


@dataclass(frozen=True, slots=True)
class Rules:
    """How each row is to be drawn from; arrays of one entry a row."""

    temperature: npt.NDArray[np.float32]
    top_k: Ints  # 0: all
    top_p: Floats
    min_p: Floats
    uniform: Floats  # the random number in [0, 1) that decides

    def __getitem__(self, rows: npt.NDArray[np.bool_] | slice) -> "Rules":
        return Rules(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.uniform[rows],
        )

    @property
    def needs_mass(self) -> npt.NDArray[np.bool_]:
        """Rows whose answer depends on what all of the vocabulary sums up to."""
        needy: npt.NDArray[np.bool_] = (self.top_k == 0) & (self.min_p == 0)
        return needy


def argmax(logits: torch.Tensor) -> Ints:
    """Return each row's likeliest token, or BAD_ROW where its logit is not a finite number."""
    if logits.device.type == "cpu":  # numpy's is several times as fast as torch's
        values = logits.numpy()
        best = values.argmax(-1)
        peaks = values[np.arange(len(values)), best]
    else:
        on_device = logits.argmax(-1)
        peaks = logits.gather(1, on_device[:, None])[:, 0].cpu().numpy()
        best = on_device.cpu().numpy()
    finite: Ints = np.where(np.isfinite(peaks), best, BAD_ROW)  # a NaN counts as the maximum
    return finite


def draw(logits: torch.Tensor, rules: Rules) -> Ints:
    """Return one token for each row, or BAD_ROW where the largest logit is not a finite number."""
    scaled = _Scaled(logits, rules.temperature)
    tokens = np.full(len(scaled.tops), BAD_ROW, np.int64)
    good = np.isfinite(scaled.tops)
    free = good & rules.needs_mass & (rules.top_p >= 1)
    if free.any():
        tokens[free] = _draw_from_all(scaled[free], rules.uniform[free])
    kept = good & ~free
    if kept.any():
        tokens[kept] = _draw_from_kept(scaled[kept], rules[kept])
    return tokens


class _Scaled:
    """Logits over temperature, cut into equal blocks with the last one filled up by -inf."""

    def __init__(self, logits: torch.Tensor, temperature: npt.NDArray[np.float32]) -> None:
        rows, vocab = logits.shape
        width = _block_width(vocab)
        blocks = -(-vocab // width)
        padded = torch.empty(rows, blocks * width, device=logits.device)
        padded[:, vocab:] = -torch.inf
        degrees = torch.from_numpy(temperature).to(logits.device)
        torch.div(logits, degrees[:, None], out=padded[:, :vocab])
        self.blocks = padded.view(rows, blocks, width)
        self.peaks = self.blocks.amax(-1).cpu().numpy()
        self.tops = self.peaks.max(-1)

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> "_Scaled":
        if rows.all():
            return self
        some = object.__new__(_Scaled)
        some.blocks = self.blocks[torch.from_numpy(rows)]
        some.peaks, some.tops = self.peaks[rows], self.tops[rows]
        return some

    @property
    def flat(self) -> torch.Tensor:
        return self.blocks.flatten(1)

    def weights(self) -> torch.Tensor:
        """Return exp(logit - top), blocked: what the tokens' probabilities are proportional to."""
        tops = torch.from_numpy(self.tops).to(self.blocks.device)
        return _exp(self.blocks - tops[:, None, None])


def _block_width(vocab: int) -> int:
    """Return a power of two that makes about 128 blocks or more of a vocabulary."""
    return min(_MAX_BLOCK, 1 << max(0, (vocab // (2 * _HEAD)).bit_length() - 1))


def _exp(values: torch.Tensor) -> torch.Tensor:
    """Overwrite `values` with their exponentials."""
    if values.device.type == "cpu":  # numpy's is as fast on one core as torch's on two
        np.exp(values.numpy(), out=values.numpy())
        return values
    return values.exp_()


def _block_sums(weights: torch.Tensor) -> Floats:
    sums: Floats = weights.sum(-1).cpu().numpy().astype(np.float64)
    return sums


def log_mass(logits: torch.Tensor) -> tuple[Floats, Floats]:
    """Return each row's largest logit and its log-sum-exp."""
    scaled = _Scaled(logits, np.ones(len(logits), np.float32))
    tops = scaled.tops.astype(np.float64)
    return tops, tops + np.log(_block_sums(scaled.weights()).sum(-1))


def _draw_from_all(scaled: _Scaled, uniform: Floats) -> Ints:
    """Find the block in which u of the mass falls, then the token in the block."""
    weights = scaled.weights()
    blocks, rest = _locate(_block_sums(weights), uniform)
    rows = torch.arange(len(blocks), device=weights.device)
    inside = weights[rows, torch.from_numpy(blocks).to(weights.device)]
    offsets = _find(np.cumsum(inside.cpu().numpy(), axis=-1, dtype=np.float64), rest)
    return blocks * weights.shape[-1] + offsets


def _locate(sums: Floats, uniform: Floats) -> tuple[Ints, Floats]:
    """Return the entry of each row in which u of its sum falls, and how far into it."""
    ends = np.cumsum(sums, axis=-1)
    target = uniform * ends[:, -1]
    found = _find(ends, target)
    every = np.arange(len(sums))
    return found, target - (ends[every, found] - sums[every, found])


def _find(ends: Floats, target: Floats) -> Ints:
    """Return each row's first entry that ends after `target`, or its last one that holds mass."""
    passed = (ends <= target[:, None]).sum(-1)
    last = (ends < ends[:, -1:]).sum(-1)
    found: Ints = np.minimum(passed, last)
    return found


def _draw_from_kept(scaled: _Scaled, rules: Rules) -> Ints:
    mass = np.full(len(scaled.tops), np.inf)
    needy = rules.needs_mass
    if needy.any():
        mass[needy] = _block_sums(scaled[needy].weights()).sum(-1)
    head = _Head(scaled, _head_bounds(scaled.peaks))
    tokens, certain = head.draw(rules, mass)
    for row in np.flatnonzero(~certain):
        alone = slice(row, row + 1)
        one = scaled[np.arange(len(tokens)) == row]
        bound = _exact_bound(one, rules[alone], mass[row])
        tokens[row] = _Head(one, np.array([bound])).draw(rules[alone], mass[alone])[0][0]
    return tokens


def _head_bounds(peaks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a bound for each row that at least _HEAD tokens reach: as many blocks peak there."""
    blocks = peaks.shape[1]
    if blocks <= _HEAD:
        return np.full(len(peaks), _LOWEST, np.float32)
    bounds = np.partition(peaks, blocks - _HEAD, axis=-1)[:, blocks - _HEAD]
    return np.maximum(bounds, np.float32(_LOWEST))


def _exact_bound(one: _Scaled, rules: Rules, mass: float) -> float:
    """Return a bound that every token reaches which could be kept."""
    top = float(one.tops[0])
    if rules.needs_mass[0]:
        # Tokens lighter than (1 - top_p) mass / V weigh less than 1 - top_p all together.
        share = (1 - rules.top_p[0]) * mass / one.flat.shape[1]
        return max(top + float(np.log(share)) - _SLACK, _LOWEST)
    bounds = [_LOWEST]
    if rules.min_p[0] > 0:
        bounds.append(top + float(np.log(rules.min_p[0])) - _SLACK)
    if 0 < rules.top_k[0] < one.flat.shape[1]:
        bounds.append(float(one.flat.topk(int(rules.top_k[0])).values[0, -1]))
    return max(bounds)


class _Head:
    """Each row's tokens from a bound upwards, in order; short rows are filled up with weight 0."""

    def __init__(self, scaled: _Scaled, bounds: npt.NDArray[np.float32]) -> None:
        flat = scaled.flat
        limits = torch.from_numpy(bounds.astype(np.float32)).to(flat.device)
        found = (flat >= limits[:, None]).nonzero()
        values = flat[found[:, 0], found[:, 1]].cpu().numpy()
        rows, ids = found.cpu().numpy().T
        self.known = np.bincount(rows, minlength=len(bounds))
        self.everything = bounds <= _LOWEST
        columns = np.arange(len(rows)) - np.repeat(np.cumsum(self.known) - self.known, self.known)
        logits = np.full((len(bounds), self.known.max()), -np.inf, np.float32)
        tokens = np.zeros(logits.shape, np.int64)
        logits[rows, columns], tokens[rows, columns] = values, ids
        order = np.argsort(-logits, axis=-1, kind="stable")
        self.tokens = np.take_along_axis(tokens, order, -1)
        ordered = np.take_along_axis(logits, order, -1).astype(np.float64)
        self.weights = np.exp(ordered - scaled.tops[:, None].astype(np.float64))
        self.ends = np.cumsum(self.weights, axis=-1)

    def draw(self, rules: Rules, mass: Floats) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Return a token for each row, and for which rows it is certain."""
        every = np.arange(len(mass))
        count, certain = self._filtered(rules)
        total = np.where(np.isinf(mass), self.ends[every, count - 1], mass)
        share = rules.top_p * total
        nucleus = (self.ends < share[:, None]).sum(-1) + 1
        cut = rules.top_p < 1
        certain &= ~(cut & np.isfinite(mass)) | (nucleus <= self.known) | self.everything
        count = np.where(cut, np.minimum(count, nucleus), count)
        target = rules.uniform * self.ends[every, count - 1]
        picked = np.minimum((self.ends <= target[:, None]).sum(-1), count - 1)
        return self.tokens[every, picked], certain

    def _filtered(self, rules: Rules) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Return how many tokens pass min_p and top_k, and where that is known for certain."""
        likely = (self.weights >= rules.min_p[:, None]).sum(-1)
        passing = np.minimum(np.where(rules.min_p > 0, likely, self.known), self.known)
        certain = rules.needs_mass | self.everything | (passing < self.known)
        limited = rules.top_k > 0
        certain |= limited & (rules.top_k <= self.known)
        return np.where(limited, np.minimum(passing, rules.top_k), passing), certain
