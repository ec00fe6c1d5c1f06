"""Progress: what a step brought to a sequence, and whether that was its end."""

from collections.abc import Set
from dataclasses import dataclass

from stafette.workers.batch import Sampled, TokenLogprobs
from stafette.workers.request import FinishReason
from stafette.workers.sequence import Sequence


@dataclass(slots=True)
class Progress:
    """One sequence's share of a settled step."""

    seq_id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token: int | None = None  # which of stop_token_ids ended it
    prompt_logprobs: list[TokenLogprobs] | None = None
    embedding: bytes | None = None
    num_cached_tokens: int = 0  # of the prompt
    error: str | None = None

    def extend(self, seq: Sequence, sampled: Sampled, eos_token_ids: Set[int]) -> None:
        """Add the sampled tokens to the sequence, up to the one that ends it."""
        for token in sampled.token_ids:
            seq.token_ids.append(token)
            self.token_ids.append(token)
            self._check_end(seq, token, eos_token_ids)
            if self.finish_reason is not None:
                break
        if sampled.logprobs is not None:
            self.logprobs = sampled.logprobs[: len(self.token_ids)]

    def _check_end(self, seq: Sequence, token: int, eos_token_ids: Set[int]) -> None:
        params = seq.params
        if seq.num_output_tokens >= params.min_tokens:
            if token in eos_token_ids and not params.ignore_eos:
                self.finish_reason = "stop"
                return
            if token in params.stop_token_ids:
                self.finish_reason, self.stop_token = "stop", token
                return
        if len(seq.token_ids) >= seq.max_length:
            self.finish_reason = "length"
