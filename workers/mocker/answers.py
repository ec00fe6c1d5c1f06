"""What a mock worker answers: tokens that mean nothing, but are the same wherever they are made.

Token i of an answer depends on the prompt, the request's seed and i only, so an answer that goes on
at another worker goes on as it would have here.
"""

import math
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from stafette.workers.batch import Batch, Sampled, StepOutput
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.step_samples import StepWork

Floats = npt.NDArray[np.float64]

_NEVER = 1 << 62
_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: consecutive multiples are far apart
_MIX = 0xBF58476D1CE4E5B9
_WIDE_STEP, _WIDE_MIX, _HALF = np.uint64(_STEP), np.uint64(_MIX), np.uint64(32)
_WORD_BYTES = 4
_KEPT = 16  # steps of which the time is told


class _Answer:
    """One sequence's tokens, by their place."""

    __slots__ = ("end", "num_prompt", "seed")

    def __init__(self, words: bytes, params: SamplingParams, mean_tokens: float) -> None:
        asked = (params.seed or 0).to_bytes(9, "little", signed=True)
        digest = blake2b(words, digest_size=16, key=asked).digest()
        self.seed = int.from_bytes(digest[:8], "little")
        self.num_prompt = len(words) // _WORD_BYTES
        self.end = _NEVER
        if mean_tokens and not params.ignore_eos:
            share = (int.from_bytes(digest[8:], "little") + 1) / (_WORD + 1)
            drawn = int(-math.log(share) * mean_tokens)
            self.end = max(drawn, params.min_tokens - 1)


class MockDevice:
    """Runs batches in no time, and says how long they take."""

    def __init__(self, config: MockerConfig) -> None:
        self._profile = config.profile
        self._speedup = self._pace = config.speedup
        self._mean_tokens = config.mean_output_tokens
        self._ends = sorted(set(config.eos_token_ids))
        self._num_plain = config.vocab_size - len(self._ends)
        self._answers: dict[int, _Answer] = {}
        self.latest: deque[tuple[float, StepWork]] = deque(maxlen=_KEPT)  # how long, for what

    def set_pace(self, factor: float) -> None:
        """Let every step take so many times as long, from now on."""
        self._pace = self._speedup / factor

    def introduce(self, seq_id: int, words: bytes, params: SamplingParams) -> None:
        """Learn of a sequence; its prompt comes as u32 little-endian words."""
        self._answers[seq_id] = _Answer(words, params, self._mean_tokens)

    def forget(self, seq_id: int) -> None:
        self._answers.pop(seq_id, None)

    def execute(self, batch: Batch) -> StepOutput:
        sampled = {
            seq.seq_id: Sampled([self.token(seq.seq_id, seq.start + seq.num_tokens)])
            for seq in batch.seqs
            if seq.sample
        }
        work = StepWork.of(batch.seqs)
        seconds = self._profile.seconds(work) / self._pace
        self.latest.append((seconds, work))
        return StepOutput(batch.step, sampled, seconds=seconds)

    # The same for many steps of sequences that decode

    def decode_seconds(self, num_seqs: int, kv_tokens: npt.NDArray[np.int64]) -> Floats:
        """Return how long steps take, by the tokens of all contexts."""
        seconds = self._profile.decode_seconds(num_seqs, kv_tokens) / self._pace
        self.latest.append((float(seconds[0]), StepWork(0, 0.0, num_seqs, int(kv_tokens[0]))))
        return seconds

    def steps_to_end(self, seq_id: int, length: int) -> int:
        """Return how many tokens follow so many before the one that ends the answer."""
        answer = self._answers[seq_id]
        left = answer.end - (length - answer.num_prompt)
        return left if left >= 0 else _NEVER

    def tokens(self, seqs: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
        """Return so many tokens of each (sequence, length so far); none of them ends an answer."""
        answers = [(self._answers[seq_id], length) for seq_id, length in seqs]
        seeds = np.array([answer.seed for answer, _ in answers], np.uint64)
        firsts = np.array([length - answer.num_prompt for answer, length in answers], np.uint64)
        places = firsts[:, None] + np.arange(count, dtype=np.uint64)
        mixed = np.asarray((seeds[:, None] + places * _WIDE_STEP) * _WIDE_MIX, np.uint64)
        tokens = np.asarray((mixed >> _HALF) % np.uint64(self._num_plain), np.uint64)
        for end in self._ends:
            tokens += tokens >= end
        found: list[list[int]] = tokens.tolist()
        return found

    def token(self, seq_id: int, length: int) -> int:
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
