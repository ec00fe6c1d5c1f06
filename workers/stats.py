"""What the engine tells of itself: the numbers behind `engine.stats()` and the metrics."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.histogram import STEP_S, Histogram


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """The scheduler's part; counts since the start, states as of now."""

    num_running: int
    num_waiting: int
    num_queued_tokens: int  # of prompts, that no batch has taken in yet
    num_blocks: int
    num_blocks_used: int  # held by a sequence
    num_blocks_cached: int  # free to take, but still of use as a prefix
    prefix_queries: int  # prompt tokens looked up
    prefix_hits: int  # prompt tokens found
    num_preemptions: int

    @property
    def kv_cache_usage(self) -> float:
        return self.num_blocks_used / self.num_blocks

    @property
    def prefix_hit_rate(self) -> float:
        return self.prefix_hits / self.prefix_queries if self.prefix_queries else 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine."""

    scheduler: SchedulerStats
    num_steps: int
    num_tokens: int  # computed, prompts and answers
    busy_seconds: float  # spent in steps
    last_step_seconds: float
    last_step_tokens: int


class StepClock:
    """Adds up the steps."""

    def __init__(self) -> None:
        self._steps = 0
        self._tokens = 0
        self._seconds = 0.0
        self._last = (0, 0.0)
        self.step_seconds = Histogram(STEP_S)  # others may read it

    def record(self, tokens: int, seconds: float) -> None:
        self._steps += 1
        self._tokens += tokens
        self._seconds += seconds
        self._last = (tokens, seconds)
        self.step_seconds.observe(seconds)

    def record_all(self, tokens: int, seconds: npt.NDArray[np.float64]) -> None:
        """Add steps of as many tokens each."""
        sums = np.add.accumulate(np.append(self._seconds, seconds))  # as one by one
        self._steps += len(seconds)
        self._tokens += tokens * len(seconds)
        self._seconds = float(sums[-1])
        self._last = (tokens, float(seconds[-1]))
        # They are nearly alike, and a simulation has millions of them.
        self.step_seconds.observe(float(seconds.mean()), len(seconds))

    def stats(self, scheduler: SchedulerStats) -> EngineStats:
        tokens, seconds = self._last
        return EngineStats(scheduler, self._steps, self._tokens, self._seconds, seconds, tokens)
