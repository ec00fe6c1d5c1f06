"""Rotary position embedding: every kind that the supported models use, as in Hugging Face."""

import math

import torch
from torch.nn import functional

from stafette.workers.errors import CheckpointError
from stafette.workers.models.spec import RopeSpec


class Rope:
    """Turns positions into the cosines and sines by which heads are rotated."""

    def __init__(self, spec: RopeSpec, head_dim: int, device: torch.device) -> None:
        frequencies, self._gain = _frequencies(spec, head_dim)
        self._frequencies = frequencies.to(device)
        self._table: torch.Tensor | None = None

    def tabulate(self, length: int, dtype: torch.dtype) -> None:
        """Keep the angles of all positions: then `angles` is one look-up instead of ten steps."""
        positions = torch.arange(length, device=self._frequencies.device)
        self._table = torch.cat(self._compute(positions, dtype), -1)[:, 0]

    def angles(
        self, positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cos, sin), each [tokens, 1, head_dim]; sin carries the half-split's signs."""
        if self._table is None or self._table.dtype != dtype:
            return self._compute(positions, dtype)
        cos, sin = functional.embedding(positions, self._table)[:, None].chunk(2, -1)
        return cos, sin

    def _compute(
        self, positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[:, None, None].float() * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        if self._gain != 1.0:
            cos, sin = cos * self._gain, sin * self._gain
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate [tokens, heads, head_dim]: x * cos + (x with its halves swapped) * signed sin."""
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)


def _frequencies(spec: RopeSpec, head_dim: int) -> tuple[torch.Tensor, float]:
    """Return the angle per position of each pair of elements, and a gain on cos and sin."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / (spec.theta**exponents)
    match spec.kind:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / spec.factor, 1.0
        case "llama3":
            return _llama3(spec, plain), 1.0
        case "yarn":
            return _yarn(spec, plain, head_dim)
        case other:
            raise CheckpointError("rope_scaling.rope_type", other, "this kind is not supported")


def _llama3(spec: RopeSpec, plain: torch.Tensor) -> torch.Tensor:
    """Slow down long wave lengths by `factor`, leave short ones, and blend between."""
    turns = spec.original_max_position * plain / (2 * math.pi)
    blend = (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / spec.factor + blend * plain


def _yarn(spec: RopeSpec, plain: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, float]:
    """Blend by how often an element turns over the original context (arXiv 2309.00071, 3.2)."""
    low = max(math.floor(_turning(spec, spec.beta_fast, head_dim)), 0)
    high = min(math.ceil(_turning(spec, spec.beta_slow, head_dim)), head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    slowed = ramp.clamp(0, 1)
    gain = spec.attention_factor
    if gain is None:
        gain = 0.1 * math.log(spec.factor) + 1.0 if spec.factor > 1 else 1.0
    return plain / spec.factor * slowed + plain * (1 - slowed), gain


def _turning(spec: RopeSpec, turns: float, head_dim: int) -> float:
    """Return the index of the pair that turns `turns` times over the original context."""
    length = spec.original_max_position / (turns * 2 * math.pi)
    return head_dim * math.log(length) / (2 * math.log(spec.theta))
