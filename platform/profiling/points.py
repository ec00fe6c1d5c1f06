"""What a profile is made of: points, each the time of one thing that a worker did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil, isfinite
from statistics import median
from typing import Any, Literal, get_args

from stafette.platform.frontend.errors import InvalidSetting

Kind = Literal["prefill", "decode", "transfer"]
Transport = Literal["shm", "tcp"]
FEATURES = (
    "step_ms",
    "prefill_ms_per_token",
    "prefill_ms_per_pair",
    "decode_ms_per_seq",
    "decode_ms_per_kv_token",
    "first_token_ms",  # of a request, outside of steps; no part of the step model
    "transfer_latency_ms",  # nor are these two: of blocks that are read from another worker
    "transfer_ms_per_mb",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A prefill's time is that to the first token, a decode's that of one step of all.

    A transfer's is that until all blocks have come.
    """

    kind: Kind
    ms: float  # the median of the samples
    low_ms: float = 0.0
    high_ms: float = 0.0
    samples: int = 1
    prompt_tokens: int = 0  # prefill: computed, beside the cached ones
    cached_tokens: int = 0
    steps: int = 1  # prefill: as many as max_num_batched_tokens makes of the prompt
    batch: int = 0  # decode
    context_tokens: int = 0  # decode: of each sequence, as asked for
    kv_tokens: int = 0  # decode: of all sequences, on average over the samples
    nbytes: int = 0  # transfer
    transport: str = ""  # transfer

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidSetting(
                "points.kind", self.kind, f"must be one of {', '.join(get_args(Kind))}"
            )
        for each in fields(self)[1:-1]:
            value = getattr(self, each.name)
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            if not plain or not isfinite(value) or value < 0:
                raise InvalidSetting(f"points.{each.name}", value, "must be a number, at least 0")
        if not self.ms:
            raise InvalidSetting("points.ms", self.ms, "must be above 0")

    @property
    def name(self) -> str:
        """What was asked for: a point of this name is not measured again."""
        if self.kind == "prefill":
            return prefill_name(self.prompt_tokens, self.cached_tokens)
        if self.kind == "transfer":
            return f"transfer {self.nbytes / 1e6:.3g} MB by {self.transport}"
        return decode_name(self.batch, self.context_tokens)

    @property
    def features(self) -> tuple[float, ...]:
        """How often each term of the step model, in the order of FEATURES, is in this time."""
        if self.kind == "decode":
            return 1.0, 0.0, 0.0, float(self.batch), float(self.kv_tokens), 0.0, 0.0, 0.0
        if self.kind == "transfer":
            return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, self.nbytes / 1e6
        new = self.prompt_tokens
        pairs = new * (self.cached_tokens + new / 2)
        return float(self.steps), float(new), pairs, 0.0, 0.0, 1.0, 0.0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what is not a default: a decode says nothing of prompts."""
        defaults = {each.name: each.default for each in fields(self)}
        return {k: v for k, v in asdict(self).items() if v != defaults[k]}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Point":
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(told) - known)
        if unknown:
            raise InvalidSetting(f"points.{unknown[0]}", told[unknown[0]], "is no part of a point")
        try:
            return cls(**told)
        except TypeError:
            raise InvalidSetting("points", dict(told), "must hold kind and ms") from None


def prefill_name(new_tokens: int, cached_tokens: int) -> str:
    return f"prefill {new_tokens} after {cached_tokens}"


def decode_name(batch: int, context_tokens: int) -> str:
    return f"decode {batch} x {context_tokens}"


def steps_of(new_tokens: int, max_num_batched_tokens: int) -> int:
    return max(1, ceil(new_tokens / max_num_batched_tokens))


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Return a point's figures of these samples."""
    ms = [each * 1e3 for each in seconds]
    rounded = {"ms": median(ms), "low_ms": min(ms), "high_ms": max(ms)}
    return {name: round(value, 4) for name, value in rounded.items()} | {"samples": len(ms)}
