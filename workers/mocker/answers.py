"""What a mock worker answers: tokens that mean nothing, but are the same wherever they are made.

Token i of an answer depends on the prompt, the request's seed and i only, so an answer that goes on
at another worker goes on as it would have here.
"""

import math
from array import array
from hashlib import blake2b

from stafette.workers.batch import Batch, NewSeq, Sampled, StepOutput
from stafette.workers.mocker.config import MockerConfig

_NEVER = 1 << 62
_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: consecutive multiples are far apart
_MIX = 0xBF58476D1CE4E5B9


class _Answer:
    """One sequence's tokens, by their place."""

    __slots__ = ("end", "num_prompt", "seed")

    def __init__(self, new: NewSeq, mean_tokens: float) -> None:
        prompt = array("I", new.prompt_token_ids).tobytes()
        asked = (new.params.seed or 0).to_bytes(9, "little", signed=True)
        digest = blake2b(prompt, digest_size=16, key=asked).digest()
        self.seed = int.from_bytes(digest[:8], "little")
        self.num_prompt = len(new.prompt_token_ids)
        self.end = _NEVER
        if mean_tokens and not new.params.ignore_eos:
            share = (int.from_bytes(digest[8:], "little") + 1) / (_WORD + 1)
            drawn = int(-math.log(share) * mean_tokens)
            self.end = max(drawn, new.params.min_tokens - 1)


class MockDevice:
    """Runs batches in no time, and says how long they take."""

    def __init__(self, config: MockerConfig) -> None:
        self._profile = config.profile
        self._speedup = config.speedup
        self._mean_tokens = config.mean_output_tokens
        self._ends = sorted(set(config.eos_token_ids))
        self._num_plain = config.vocab_size - len(self._ends)
        self._answers: dict[int, _Answer] = {}

    def execute(self, batch: Batch) -> StepOutput:
        for seq_id in batch.removed:
            self._answers.pop(seq_id, None)
        for new in batch.added:
            self._answers[new.seq_id] = _Answer(new, self._mean_tokens)
        sampled = {
            seq.seq_id: Sampled([self._token(seq.seq_id, seq.start + seq.num_tokens)])
            for seq in batch.seqs
            if seq.sample
        }
        seconds = self._profile.step_seconds(batch.seqs) / self._speedup
        return StepOutput(batch.step, sampled, seconds=seconds)

    def _token(self, seq_id: int, length: int) -> int:
        """Return the token that follows so many of prompt and answer."""
        answer = self._answers[seq_id]
        place = length - answer.num_prompt
        if place == answer.end:
            return self._ends[0]
        mixed = ((answer.seed + place * _STEP) & _WORD) * _MIX & _WORD
        token = (mixed >> 32) % self._num_plain
        for end in self._ends:
            token += token >= end
        return token
