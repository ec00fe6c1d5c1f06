"""What does the scheduler cost? Goal: at most 8 µs a sequence and step, with 64 and 256 running.

    python benchmarks/engine/scheduling.py [--quick] [--json FILE]

Prompts of 128 random tokens, 64 tokens of answer, no model: `next_batch` and `settle` alone. Times
are those of the processor, not of the clock.
"""

import argparse
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np

from benchmarks.common.report import Goal, Report
from stafette.workers.batch import Batch, Sampled, StepOutput
from stafette.workers.config import EngineConfig
from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.scheduler import Scheduler
from stafette.workers.scheduler_config import SchedulerConfig
from stafette.workers.sequence import Sequence

Result = TypeVar("Result")

NUM_RUNNING = (1, 64, 256)
PROMPT_TOKENS, ANSWER_TOKENS = 128, 64
BLOCK_SIZE = 16
VOCAB = 49_152
GOAL_US = 8.0


@dataclass(slots=True)
class Stopwatch:
    """Adds up this thread's processor time within some calls."""

    seconds: float = 0.0

    def time(self, function: Callable[[], Result]) -> Result:
        started = time.thread_time()
        try:
            return function()
        finally:
            self.seconds += time.thread_time() - started


def make(num_seqs: int, config: EngineConfig) -> Scheduler:
    blocks = num_seqs * (PROMPT_TOKENS + ANSWER_TOKENS) // BLOCK_SIZE + 1
    longest = PROMPT_TOKENS + ANSWER_TOKENS
    pool = BlockPool(blocks + num_seqs, BLOCK_SIZE)
    scheduler = Scheduler(SchedulerConfig.of(config, longest, (2,)), pool, time.monotonic)
    prompts = np.random.default_rng(0).integers(0, VOCAB, (num_seqs, PROMPT_TOKENS)).tolist()
    for seq_id, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True)
        seq = Sequence(
            seq_id=seq_id, token_ids=prompt, num_prompt_tokens=len(prompt), params=params
        )
        scheduler.add(seq)
    return scheduler


def microseconds(num_seqs: int, async_scheduling: bool) -> float:
    """Serve `num_seqs` answers; return the cost of one sequence in one step."""
    config = EngineConfig(max_num_seqs=max(NUM_RUNNING), async_scheduling=async_scheduling)
    scheduler = make(num_seqs, config)
    watch, in_flight, num_steps = Stopwatch(), deque[Batch](), 0
    while scheduler.has_work or in_flight:
        while len(in_flight) < 1 + async_scheduling:
            batch = watch.time(scheduler.next_batch)
            if batch is None:
                break
            in_flight.append(batch)
        batch = in_flight.popleft()
        sampled = {step.seq_id: Sampled([5]) for step in batch.seqs if step.sample}
        output = StepOutput(batch.step, sampled)
        watch.time(partial(scheduler.settle, batch, output))
        num_steps += len(batch.seqs)
    return watch.seconds / num_steps * 1e6


def measure(rounds: int) -> Report:
    report = Report("The scheduler, µs a sequence and step")
    rows: list[list[object]] = []
    for num_seqs in NUM_RUNNING:
        row: list[object] = [num_seqs]
        for async_scheduling in (False, True):
            cost = median(microseconds(num_seqs, async_scheduling) for _ in range(rounds))
            row.append(cost)
            if num_seqs > 1:
                mode = "async" if async_scheduling else "sync"
                report.goal(Goal(f"{num_seqs} sequences, {mode}", cost, at_most=GOAL_US))
        rows.append(row)
    report.table("next_batch and settle", ["sequences", "sync", "async"], rows)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    return measure(1 if arguments.quick else 5).finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
