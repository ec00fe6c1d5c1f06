"""What the last steps had to do, and how long they took: so routers learn a worker's speed."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from stafette.workers.batch import SeqStep

_KEPT = 32  # for those who look once in a while; a sample of them is enough


class StepWork(NamedTuple):
    """What a step has to do. One token more of a sequence is decoding, more are not."""

    tokens: int  # of prompts
    pairs: float  # of each of these with those before it
    decoding: int  # sequences
    kv_tokens: int  # of their contexts

    @classmethod
    def of(cls, seqs: Sequence[SeqStep]) -> "StepWork":
        tokens = decoding = kv_tokens = 0
        pairs = 0.0
        for seq in seqs:
            count = len(seq.tokens) + seq.from_last
            if count == 1:
                decoding += 1
                kv_tokens += seq.start + 1
            else:
                tokens += count
                pairs += count * (seq.start + count / 2)
        return cls(tokens, pairs, decoding, kv_tokens)

    @property
    def of_prompts(self) -> float:
        """Return the share of the step's tokens that are prompts'."""
        return self.tokens / max(1, self.tokens + self.decoding)


class StepSamples:
    """The last steps, numbered, so that each of several readers finds what is new to it."""

    def __init__(self) -> None:
        self._rows: deque[list[float]] = deque(maxlen=_KEPT)
        self._count = 0

    def add(self, seqs: Sequence[SeqStep], seconds: float) -> None:
        self.add_work(StepWork.of(seqs), seconds)

    def add_work(self, work: StepWork, seconds: float) -> None:
        self._rows.append([seconds * 1e3, *work])
        self._count += 1

    def newest(self, count: int) -> tuple[int, tuple[StepWork, float] | None]:
        """Return how many steps there were, and the last with its seconds if they were fewer."""
        if self._count == count:
            return count, None
        ms, tokens, pairs, decoding, kv_tokens = self._rows[-1]
        work = StepWork(int(tokens), pairs, int(decoding), int(kv_tokens))
        return self._count, (work, ms / 1e3)

    def latest(self) -> list[object]:
        """Return [number of the first row, rows]: [milliseconds, *StepWork], plain values."""
        rows = list(self._rows)
        return [self._count - len(rows), rows]
