"""How long a class of workers takes for what: a small model in milliseconds, learned as they work.

A step costs a constant, so much for each token of prompts and for each pair of such a token with
one before it, so much for each sequence that decodes and for each token of its context.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from stafette.router.errors import InvalidValue

_FORGETTING = 0.999  # the weight of a report when the next one comes
_PRIOR_SPREAD = 1.0  # how far off a prior may be, as a share of it
_NOISE = 0.1  # of a step's time, as a share of it
_OUTLIER = 3.0  # what takes longer than so many times the prediction tells of something else
_LEARNED = 5  # the model's first fields, in the order of a report's features


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """The priors are of the order of an 8-billion model on one data-centre GPU."""

    step_ms: float = 6.0
    prefill_ms_per_token: float = 0.015
    prefill_ms_per_pair: float = 8e-7
    decode_ms_per_seq: float = 0.02
    decode_ms_per_kv_token: float = 2e-5
    max_num_batched_tokens: int = 8192
    prefill_stalls_decode: float = 1.0  # share of a prompt's time by which running answers wait

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:  # a NaN fails as well
                raise InvalidValue(f"performance.{field.name}", value, "must be at least 0")
        if self.max_num_batched_tokens < 1:
            raise InvalidValue("performance.max_num_batched_tokens", 0, "must be at least 1")

    def prefill_ms(self, tokens: int, cached: int = 0) -> float:
        """Return the time for `tokens` of a prompt that follow `cached` ones."""
        if tokens <= 0:
            return 0.0
        steps = -(-tokens // self.max_num_batched_tokens)
        pairs = tokens * (cached + tokens / 2)
        return (
            steps * self.step_ms
            + tokens * self.prefill_ms_per_token
            + pairs * self.prefill_ms_per_pair
        )

    def decode_step_ms(self, sequences: int, kv_tokens: int) -> float:
        return (
            self.step_ms
            + sequences * self.decode_ms_per_seq
            + kv_tokens * self.decode_ms_per_kv_token
        )

    def added_step_ms(self, context_tokens: float) -> float:
        """Return by how much one more sequence with this context lengthens a step of the others."""
        return self.decode_ms_per_seq + context_tokens * self.decode_ms_per_kv_token


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a worker, as it was."""

    wall_ms: float
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0  # of each of these tokens with those before it in its prompt
    decode_sequences: int = 0
    decode_kv_tokens: int = 0

    @property
    def usable(self) -> bool:
        numbers = (self.prefill_tokens, self.prefill_pairs, self.decode_sequences)
        whole = all(0 <= number < float("inf") for number in (*numbers, self.decode_kv_tokens))
        return whole and 0 < self.wall_ms < float("inf")


class Learner:
    """Fits the model to what a class of workers reports, by least squares that forget slowly.

    It starts at the priors, and moves only along what the reports tell: a class that never decodes
    keeps its decode priors.
    """

    def __init__(self, prior: Performance) -> None:
        self.performance = prior
        self.reports = 0
        self.rejected = 0  # that were no reports, or of something else
        self.error = 0.0  # running mean of |predicted - actual| / actual
        floor = Performance()
        start = [getattr(prior, field.name) for field in fields(prior)[:_LEARNED]]
        usual = [getattr(floor, field.name) for field in fields(floor)[:_LEARNED]]
        # In units of how far off each prior may be: their sizes differ by a factor of a million.
        self._scale = np.maximum(start, usual) * _PRIOR_SPREAD
        self._weights = np.array(start) / self._scale
        self._covariance = np.eye(_LEARNED)

    def learn(self, report: StepReport) -> None:
        if not report.usable:
            self.rejected += 1
            return
        features = np.array(
            [
                1.0,
                report.prefill_tokens,
                report.prefill_pairs,
                report.decode_sequences,
                report.decode_kv_tokens,
            ]
        )
        features *= self._scale
        predicted = float(features @ self._weights)
        if self.reports > _LEARNED and report.wall_ms > _OUTLIER * max(predicted, 1e-3):
            self._weigh_outlier()
            return
        self._update(features, report.wall_ms, predicted)
        error = abs(predicted - report.wall_ms) / report.wall_ms
        self.reports += 1
        self.error += (error - self.error) / min(self.reports, 100)

    def _weigh_outlier(self) -> None:
        """One is a hiccup; if they go on, the worker has become slower: trust the model less."""
        self.rejected += 1
        self._covariance = _bounded(self._covariance * 1.5)
        if self.rejected % (2 * _LEARNED) == 0:
            self.reports = 0

    def _update(self, features: "np.ndarray", wall_ms: float, predicted: float) -> None:
        spread = self._covariance @ features
        noise = _FORGETTING * (_NOISE * wall_ms) ** 2
        gain = spread / (noise + float(features @ spread))
        self._weights = self._weights + gain * (wall_ms - predicted)
        # Joseph's form: a sum of squares, which rounding leaves one, however long it goes on.
        left = np.eye(_LEARNED) - np.outer(gain, features)
        covariance = left @ self._covariance @ left.T + noise * np.outer(gain, gain)
        self._covariance = _bounded((covariance + covariance.T) / (2 * _FORGETTING))
        learned = np.maximum(self._weights * self._scale, 0.0)
        step, token, pair, sequence, kv_token = learned.tolist()
        self.performance = replace(
            self.performance,
            step_ms=step,
            prefill_ms_per_token=token,
            prefill_ms_per_pair=pair,
            decode_ms_per_seq=sequence,
            decode_ms_per_kv_token=kv_token,
        )


def _bounded(covariance: "np.ndarray") -> "np.ndarray":
    """What no report tells of must not become uncertain without end."""
    shrink = 1 / np.sqrt(np.maximum(np.diag(covariance), 1.0))
    return covariance * np.outer(shrink, shrink)
