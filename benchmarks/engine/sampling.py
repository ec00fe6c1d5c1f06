"""What does it cost to turn a step's logits into tokens? Goal: greedy at batch 1 in < 0.15 ms.

    python benchmarks/engine/sampling.py [--quick] [--json FILE]

The logits are the embedded model's own for a page of prose, for how many tokens a nucleus holds
decides what top_p costs. Times are those of the processor, not of the clock: other work on the
machine does not change them. A full sort of the vocabulary stands beside them for comparison.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common.report import Goal, Report
from stafette.workers import LLM, SamplingParams
from stafette.workers.batch import NewSeq
from stafette.workers.sampling.sampler import Sampler, SampleRow

BATCHES = (1, 16, 64)
PROMPT_TOKENS = 128
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {},
    "top_k 50": {"top_k": 50},
    "top_p 0.95, temperature 0.7": {"top_p": 0.95, "temperature": 0.7},
    "top_p 0.95, temperature 1": {"top_p": 0.95},
    "min_p 0.05": {"min_p": 0.05},
    "greedy, repetition penalty": {"temperature": 0, "repetition_penalty": 1.1},
    "top_p, all penalties": {
        "top_p": 0.95,
        "temperature": 0.7,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "greedy, 5 logprobs": {"temperature": 0, "logprobs": 5},
}
PROSE = """The lighthouse keeper climbed the stairs one last time before the storm. Below him the
sea was the colour of slate, and the gulls had gone inland hours ago. He thought of the letters in
his desk, of the brother who had emigrated, and of the strange light that he had seen in March.
Science, he had been told, could explain most things: refraction, plankton, the reflection of a
lantern in the fog. But the keeper had a theory of his own."""


def real_logits() -> torch.Tensor:
    with LLM(max_model_len=256) as llm:
        tokens = llm.engine.tokenizer.encode(PROSE)
        return llm.logits(tokens)[-max(BATCHES) :].clone()


def milliseconds(function: Callable[[], object], rounds: int) -> float:
    """Return the median of this thread's processor time."""
    function()
    times = []
    for _ in range(rounds):
        started = time.thread_time()
        function()
        times.append(time.thread_time() - started)
    return median(times) * 1e3


def step(logits: torch.Tensor, fields: dict[str, Any]) -> Callable[[], object]:
    """Return a function that samples once for every row of `logits`."""
    batch, vocab = logits.shape
    sampler = Sampler((2,), None, seed=0)
    prompts = np.random.default_rng(0).integers(0, vocab, (batch, PROMPT_TOKENS)).tolist()
    for seq_id, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=None, **fields)
        sampler.add(NewSeq(seq_id, prompt, [], params))
    rows = [SampleRow(i, i, []) for i in range(batch)]
    return lambda: sampler.sample(logits, rows)


def full_sort(logits: torch.Tensor) -> Callable[[], object]:
    """Return a function that draws with top_p 0.95 by its definition."""

    def draw() -> torch.Tensor:
        ordered, tokens = logits.sort(-1, descending=True)
        odds = ordered.softmax(-1)
        odds[odds.cumsum(-1) - odds >= 0.95] = 0
        return tokens.gather(1, odds.multinomial(1))

    return draw


def measure(rounds: int) -> Report:
    torch.set_num_threads(1)  # so that thread_time sees all of the work
    logits = real_logits()
    report = Report(f"Sampling, milliseconds a step ({logits.shape[1]:,} tokens)")
    rows: list[list[object]] = []
    for name, fields in CASES.items():
        times = [milliseconds(step(logits[:batch], fields), rounds) for batch in BATCHES]
        rows.append([name, *times])
        if name == "greedy":
            report.goal(Goal("greedy at batch 1 < 0.15 ms", times[0], at_most=0.15))
    sorting = [milliseconds(full_sort(logits[:batch]), max(3, rounds // 10)) for batch in BATCHES]
    rows.append(["top_p by a full sort", *sorting])
    report.table("a step", ["rules", *(f"batch {batch}" for batch in BATCHES)], rows)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    return measure(10 if arguments.quick else 100).finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
