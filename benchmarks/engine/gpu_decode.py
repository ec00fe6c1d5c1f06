"""What share of the memory's bandwidth does decode reach on this GPU, and what do graphs bring?

    python -m benchmarks.engine.gpu_decode [--quick] [--json FILE]

The model has Qwen3-0.6B's shape and random weights. A step at batch 1 must read every weight and
the sequence's KV once: bytes / time / bandwidth is the share. The bandwidth is measured here, by
copying, and the device's nominal one stands beside it. Exit status: 1 when a goal is missed, 2
without a GPU.
"""

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.common.report import Goal, Report
from benchmarks.engine import random_qwen3
from stafette.workers.config import EngineConfig
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.weights.opening import open_checkpoint

GIB = 1 << 30
_BF16_BYTES = 2
NO_GPU = 2
GOAL_SHARE = 0.70  # of the bandwidth, at batch 1
MAX_MODEL_LEN = 4096
NOMINAL_GB_PER_S = {"H200": 4800, "H100": 3350, "A100": 2039, "B200": 8000, "L40S": 864}


@dataclass(frozen=True, slots=True)
class Case:
    batch: int
    context: int  # tokens in every sequence's KV

    @property
    def name(self) -> str:
        return f"batch {self.batch}, context {self.context}"


CASES = (Case(1, 128), Case(1, 2048), Case(8, 512), Case(64, 512), Case(256, 512))
FIRST = CASES[0]


def make_runner(model: Path, enforce_eager: bool) -> TorchRunner:
    """Return a runner with a pool for the largest case, ready to decode."""
    batch = max(case.batch for case in CASES)
    config = EngineConfig(
        model=str(model),
        device="cuda",
        runner="torch",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=batch,
        enforce_eager=enforce_eager,
    )
    runner = TorchRunner(config, open_checkpoint(config.model))
    runner.allocate_kv(max(case.batch * blocks_of(case) for case in CASES))
    runner.warm_up()
    return runner


def blocks_of(case: Case) -> int:
    return -(-case.context // EngineConfig().block_size)


def decode_step(case: Case) -> StepInputs:
    """Return the step that appends the last token of every sequence's context."""
    rows = np.arange(case.batch, dtype=np.int32)
    width = blocks_of(case)
    return StepInputs(
        token_ids=rows + 1,
        positions=np.full(case.batch, case.context - 1, np.int32),
        query_starts=np.arange(case.batch + 1, dtype=np.int32),
        context_lens=np.full(case.batch, case.context, np.int32),
        block_tables=(rows[:, None] * width + np.arange(width, dtype=np.int32)).astype(np.int32),
        logit_rows=rows,
    )


def milliseconds(runner: TorchRunner, case: Case, rounds: int) -> float:
    """Return the median time of a step on the device, steps queued back to back."""
    inputs = decode_step(case)
    for _ in range(3):
        runner.forward(inputs)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        runner.forward(inputs)
        mark.record()
    torch.cuda.synchronize()
    pairs = zip(marks, marks[1:], strict=False)
    return float(median(first.elapsed_time(second) for first, second in pairs))


def step_bytes(case: Case) -> int:
    """Return what a step cannot do without reading: every weight, and its sequences' KV."""
    config = random_qwen3.CONFIG
    weights = sum(math.prod(shape) for _, shape in random_qwen3.shapes(config))
    heads = config["num_hidden_layers"] * config["num_key_value_heads"]
    token = 2 * heads * config["head_dim"]  # K and V
    return _BF16_BYTES * int(weights + case.batch * case.context * token)


def copy_bandwidth(rounds: int) -> float:
    """Return GB/s that a copy within the device's memory reads and writes."""
    source = torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return float(2 * len(source) / median(times) / 1e6)


def nominal_bandwidth(device: str) -> float | None:
    return next((speed for name, speed in NOMINAL_GB_PER_S.items() if name in device), None)


def measure(model: Path, rounds: int) -> Report:
    device = torch.cuda.get_device_name()
    report = Report(f"Decode on {device}: Qwen3-0.6B's shape, bfloat16, random weights")
    copied, nominal = copy_bandwidth(10), nominal_bandwidth(device)
    limit = nominal or copied
    report.figure("bandwidth of a copy, GB/s", copied)
    report.figure("nominal bandwidth, GB/s", nominal)
    times = {eager: _times(model, eager, rounds) for eager in (True, False)}
    shares = {case: step_bytes(case) / times[False][case] / 1e6 / limit for case in CASES}
    rows = [_row(case, times[True][case], times[False][case], shares[case]) for case in CASES]
    headers = ["case", "eager ms", "graph ms", "eager / graph", "tok/s", "share of bandwidth"]
    report.table("a decode step", headers, rows)
    report.goal(Goal("share of bandwidth at batch 1", shares[FIRST], at_least=GOAL_SHARE))
    report.note("the share is of the nominal bandwidth where that is known, else of a copy's")
    return report


def _times(model: Path, eager: bool, rounds: int) -> dict[Case, float]:
    runner = make_runner(model, eager)
    times = {case: milliseconds(runner, case, rounds) for case in CASES}
    runner.close()
    return times


def _row(case: Case, eager: float, graph: float, share: float) -> list[object]:
    return [case.name, eager, graph, eager / graph, case.batch / graph * 1e3, share]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_decode: there is no CUDA GPU here; nothing was measured", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory() as directory:
        model = random_qwen3.write(Path(directory) / "qwen3-0.6b")
        return measure(model, 20 if arguments.quick else 200).finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
