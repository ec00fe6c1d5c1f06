"""Where a step of the native runner spends its time, on the embedded model.

    python benchmarks/engine/native_kernels.py [--quick] [--threads 1 2] [--isa NAME] [--json FILE]

Each shape is one call of the runner over a pool of random keys and values, without scheduler or
sampler. Shapes and numbers of threads take turns; the tables show medians, and the best of each
phase. GOPS counts two operations a weight and token; GB/s the weights and KV that a step must read.
"""

import argparse
import time
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from benchmarks.common.report import Report
from stafette.workers.config import EngineConfig
from stafette.workers.native.structs import PHASES
from stafette.workers.runner.native import NativeRunner
from stafette.workers.runner.runner import StepInputs
from stafette.workers.weights.embedded import embedded_model
from stafette.workers.weights.gguf_checkpoint import GgufCheckpoint

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """`sequences` of `context` tokens each, of which the last `new` are computed."""

    name: str
    sequences: int
    context: int
    new: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.new

    @property
    def blocks(self) -> int:
        return self.sequences * -(-self.context // BLOCK_SIZE)


SHAPES = (
    Shape("prefill 128", 1, 128, 128),
    Shape("prefill 2,048 in a chunk", 1, 2048, 2048),
    Shape("decode 1 at 160", 1, 160, 1),
    Shape("decode 16 at 160", 16, 160, 1),
    Shape("decode 64 at 160", 64, 160, 1),
    Shape("decode 8 at 2,048", 8, 2048, 1),
)


@dataclass(slots=True)
class Times:
    seconds: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    def best(self, phase: str) -> float:
        return min(each[phase] for each in self.phases)


def inputs_of(shape: Shape, vocab_size: int) -> StepInputs:
    random = np.random.default_rng(0)
    positions = np.arange(shape.context - shape.new, shape.context)
    return StepInputs(
        token_ids=random.integers(0, vocab_size, shape.tokens).astype(np.int32),
        positions=np.tile(positions, shape.sequences).astype(np.int32),
        query_starts=np.arange(0, shape.tokens + 1, shape.new, dtype=np.int32),
        context_lens=np.full(shape.sequences, shape.context, np.int32),
        block_tables=np.arange(shape.blocks, dtype=np.int32).reshape(shape.sequences, -1),
        logit_rows=np.arange(shape.new - 1, shape.tokens, shape.new, dtype=np.int32),
    )


def make_runner(threads: int, isa: str) -> NativeRunner:
    runner = NativeRunner(EngineConfig(num_threads=threads), GgufCheckpoint(embedded_model()), isa)
    runner.allocate_kv(max(shape.blocks for shape in SHAPES))
    runner.kv_pool().normal_()  # untouched memory would be one page of zeros, always in the cache
    runner.warm_up()
    return runner


def measure(runners: dict[int, NativeRunner], rounds: int) -> dict[tuple[str, int], Times]:
    times: dict[tuple[str, int], Times] = {}
    for _ in range(rounds):
        for shape in SHAPES:
            for threads, runner in runners.items():
                into = times.setdefault((shape.name, threads), Times())
                _measure_once(runner, shape, into)
    return times


def _measure_once(runner: NativeRunner, shape: Shape, into: Times) -> None:
    inputs = inputs_of(shape, runner.spec.vocab_size)
    for _ in range(max(1, 64 // shape.tokens)):
        runner.take_times()
        started = time.perf_counter()
        runner.forward(inputs)
        into.seconds.append(time.perf_counter() - started)
        into.phases.append(runner.take_times())


def operations(runner: NativeRunner, shape: Shape) -> float:
    """Return the operations of a step's matrix products."""
    spec = runner.spec
    qkvo = 2 * spec.hidden_size * spec.q_size + 2 * spec.hidden_size * spec.kv_size
    layer = qkvo + 3 * spec.hidden_size * spec.intermediate_size
    head = spec.vocab_size * spec.hidden_size * shape.sequences
    return 2.0 * (layer * spec.num_layers * shape.tokens + head)


def bytes_read(runner: NativeRunner, shape: Shape) -> float:
    return float(runner.weight_bytes + shape.blocks * runner.kv_layout.block_bytes)


def report_of(runners: dict[int, NativeRunner], times: dict[tuple[str, int], Times]) -> Report:
    report = Report("The native runner, step by step")
    rates, phases = [], []
    for shape in SHAPES:
        for threads, runner in runners.items():
            each = times[shape.name, threads]
            seconds = median(each.seconds)
            rate = (
                operations(runner, shape) / seconds / 1e9,
                bytes_read(runner, shape) / seconds / 1e9,
            )
            speed = shape.tokens / seconds, shape.tokens / min(each.seconds)
            rates.append([shape.name, threads, seconds * 1e3, *speed, *rate])
            best = [each.best(phase) * 1e3 for phase in PHASES]
            phases.append([shape.name, threads, *best])
    headers = ["shape", "threads", "ms", "tok/s", "best tok/s", "GOPS", "GB/s"]
    report.table("Steps", headers, rates)
    report.table("The best of each phase, ms", ["shape", "threads", *PHASES], phases)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="The native runner, step by step")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of fifteen")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, EngineConfig().threads])
    parser.add_argument("--isa", default="", help="avx512_bf16, avx512, avx2 or scalar")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    threads = sorted(set(arguments.threads))
    runners = {count: make_runner(count, arguments.isa) for count in threads}
    times = measure(runners, 3 if arguments.quick else 15)
    report = report_of(runners, times)
    report.figure("kernels", runners[threads[0]].isa)
    for runner in runners.values():
        runner.close()
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
