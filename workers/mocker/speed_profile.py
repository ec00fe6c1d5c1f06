"""How fast a mock worker is: the time of a step and of a hand-over, as a small JSON file tells it.

    {"version": 1, "step_ms": 6.0, "prefill_ms_per_token": 0.015, ...}

A step costs a constant, so much for each token of prompts and for each pair of such a token with
one before it, so much for each sequence that decodes and for each token of its context.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stafette.workers.batch import SeqStep
from stafette.workers.errors import ConfigError
from stafette.workers.step_samples import StepWork

VERSION = 1
_VERSION_KEY = "version"
_ABOVE_ZERO = ("transfer_gb_s", "kv_bytes_per_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The defaults are of the order of an 8-billion model on one data-centre GPU."""

    step_ms: float = 6.0
    prefill_ms_per_token: float = 0.015
    prefill_ms_per_pair: float = 8e-7
    decode_ms_per_seq: float = 0.02
    decode_ms_per_kv_token: float = 2e-5
    kv_bytes_per_token: int = 131_072
    transfer_gb_s: float = 20.0  # of KV into a worker
    transfer_latency_ms: float = 0.2  # before its first byte

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            if not plain or not math.isfinite(value) or value < 0:
                raise ConfigError(f"profile.{each.name}", value, "must be a number of at least 0")
        for name in _ABOVE_ZERO:
            if not getattr(self, name):
                raise ConfigError(f"profile.{name}", getattr(self, name), "must be above 0")
        if not isinstance(self.kv_bytes_per_token, int):
            value = self.kv_bytes_per_token
            raise ConfigError("profile.kv_bytes_per_token", value, "must be a whole number")

    def step_seconds(self, seqs: Sequence[SeqStep]) -> float:
        """Return how long a batch takes."""
        return self.seconds(StepWork.of(seqs))

    def seconds(self, work: StepWork) -> float:
        return (
            self.step_ms
            + work.tokens * self.prefill_ms_per_token
            + work.pairs * self.prefill_ms_per_pair
            + work.decoding * self.decode_ms_per_seq
            + work.kv_tokens * self.decode_ms_per_kv_token
        ) / 1e3

    def decode_seconds(
        self, num_seqs: int, kv_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return how long steps take in which so many decode, by the tokens of their contexts."""
        per_kv_token = np.float64(self.decode_ms_per_kv_token)
        same_ms = self.step_ms + num_seqs * self.decode_ms_per_seq
        return (same_ms + kv_tokens * per_kv_token) / 1e3

    def transfer_seconds(self, nbytes: int) -> float:
        """Return how long a worker's way in is taken by so many bytes."""
        return nbytes / (self.transfer_gb_s * 1e9)

    def to_json(self) -> str:
        return json.dumps({_VERSION_KEY: VERSION} | asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Profile":
        """Read what `to_json` made; what is left out has its default."""
        try:
            told = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError("profile", text, f"is not JSON: {error}") from None
        if not isinstance(told, dict):
            raise ConfigError("profile", told, "must be a JSON object")
        version = told.pop(_VERSION_KEY, None)
        if version != VERSION:
            raise ConfigError("profile.version", version, f"must be {VERSION}")
        _check_names(told)
        return cls(**told)

    @classmethod
    def read(cls, path: Path) -> "Profile":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError("profile", str(path), f"cannot be read: {error}") from None
        return cls.from_json(text)


def _check_names(told: dict[str, Any]) -> None:
    known = [each.name for each in fields(Profile)]
    for name, value in told.items():
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            remedy = f"; did you mean {nearest[0]}?" if nearest else f": {', '.join(known)}"
            raise ConfigError(f"profile.{name}", value, f"is no part of a profile{remedy}")
