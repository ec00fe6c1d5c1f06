"""From a static batch to quantized weights, M1 to M7: each rung one more switch of the same engine.

    python benchmarks/engine/ladder.py [--quick] [--json FILE] [--png FILE]

On a CPU with SmolLM2; on a GPU with a model of Qwen3-0.6B's shape and random weights, and there
also how near decode comes to the limit of the memory's bandwidth, and what CUDA graphs are worth.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.chart import bars
from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import middle, ratio, turns
from benchmarks.engine.random_qwen3 import write
from benchmarks.engine.workload import Workload
from stafette.workers.native import library

TITLE = "The ladder: one switch after the other"
DEFAULT_FOLDER = Path.home() / ".cache" / "stafette" / "models"

# Prompts share beginnings, most are short, some are long: what each rung is about occurs.
MIXED = Workload(32, 2, 192, (8, 448), (8, 192))
QUICK = Workload(8, 2, 64, (8, 96), (8, 32))
GPU_MIXED = Workload(256, 8, 512, (16, 1024), (16, 512))
SOLO = Workload(1, 0, 0, (128, 128), (256, 256))

_RUNG_TIMEOUT_S = 900.0
_BANDWIDTH = {  # bytes a second, by the maker's data sheet
    "B200": 8.0e12,
    "H200": 4.8e12,
    "H100": 3.35e12,
    "A100": 2.0e12,
    "L40S": 0.864e12,
    "L4": 0.3e12,
}
_BASE: dict[str, Any] = {
    "runner": "torch",
    "attention_backend": "reference",
    "dtype": "bfloat16",
    "quantization": "none",
    "continuous_batching": False,
    "preallocate_kv": True,
    "enable_chunked_prefill": False,
    "enable_prefix_caching": False,
    "enforce_eager": True,
}


@dataclass(frozen=True, slots=True)
class Rung:
    """A name, and the flags that differ from the rung below."""

    name: str
    flags: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rungs of a kind of machine, what is run on them, and the sizes that all rungs share."""

    rungs: list[Rung]
    workload: Workload
    sizes: dict[str, Any]

    def flags(self, number: int) -> dict[str, Any]:
        """Return a rung's flags, with those of every rung below it."""
        flags = _BASE | self.sizes
        for rung in self.rungs[: number + 1]:
            flags |= rung.flags
        return flags


_SCHEDULING = [
    Rung("M1 static batch", {}),
    Rung("M2 continuous batching", {"continuous_batching": True}),
    Rung("M3 paged KV", {"preallocate_kv": False}),
]


def cpu_ladder(chunk: int = 256) -> Ladder:
    """Preallocation holds 8 sequences of 1,024 tokens in the same memory that paging fills."""
    quantized = Rung("M7 Q4_1 weights", {"quantization": "auto", "dtype": "auto"})
    upper = [*_native_rungs(), *_upper_rungs(chunk), quantized]
    sizes = {"model": "smollm2", "max_model_len": 1024, "num_kv_blocks": 512}
    sizes |= {"max_num_seqs": 32, "max_num_batched_tokens": 2048}
    return Ladder(_SCHEDULING + upper, MIXED, sizes)


def quick_ladder() -> Ladder:
    sizes = {"max_model_len": 256, "num_kv_blocks": 64, "max_num_seqs": 8}
    full = cpu_ladder(chunk=128)
    return replace(full, workload=QUICK, sizes=full.sizes | sizes)


def gpu_ladder(dense: Path, packed: Path) -> Ladder:
    upper = [
        Rung("M4 flash or Triton attention", {"attention_backend": "auto"}),
        Rung("M4 CUDA graphs", {"enforce_eager": False}),
        *_upper_rungs(chunk=1024),
        Rung("M7 4-bit GPTQ weights", {"model": str(packed), "quantization": "auto"}),
        Rung("M7 fp8 KV", {"kv_cache_dtype": "fp8"}),
    ]
    sizes = {"model": str(dense), "tokenizer": "smollm2", "max_model_len": 4096}
    sizes |= {"num_kv_blocks": 8192, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
    return Ladder(_SCHEDULING + upper, GPU_MIXED, sizes)


def _native_rungs() -> list[Rung]:
    if library.why_not() is not None:  # no compiler: the upper rungs run on torch
        return [Rung("M4 torch attention", {"attention_backend": "torch"})]
    return [
        Rung("M4 native attention", {"attention_backend": "cpu"}),
        Rung("M4 native kernels, bf16", {"runner": "native", "attention_backend": "auto"}),
    ]


def _upper_rungs(chunk: int) -> list[Rung]:
    chunked = {"enable_chunked_prefill": True, "max_num_batched_tokens": chunk}
    caching = Rung("M6 prefix caching", {"enable_prefix_caching": True})
    return [Rung("M5 chunked prefill", chunked), caching]


class Climb:
    """Runs rungs, each in a fresh process; one that fails leaves a gap and a note."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._failed: set[str] = set()

    def run(
        self, name: str, flags: dict[str, Any], workload: Workload, seed: int
    ) -> dict[str, float] | None:
        if name in self._failed:
            return None
        job = json.dumps({"flags": flags, "workload": asdict(workload), "seed": seed})
        command = [sys.executable, "-P", "-m", "benchmarks.engine.ladder_rung", job]
        print(f"round {seed + 1}: {name}", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(command, capture_output=True, timeout=_RUNG_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._fail(name, f"did not end within {_RUNG_TIMEOUT_S:.0f} s")
            return None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            self._fail(name, lines[-1] if lines else f"status {done.returncode}")
            return None
        found: dict[str, float] = json.loads(done.stdout)
        return found

    def _fail(self, name: str, reason: str) -> None:
        self._failed.add(name)
        self._report.note(f"{name}: {reason}")


def climb(ladder: Ladder, rounds: int, report: Report) -> list[dict[str, float]]:
    """Return each rung's medians, its rungs run in turns."""
    runner = Climb(report)
    names = [rung.name for rung in ladder.rungs]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number, name in turns(names, rounds):
        result = runner.run(name, ladder.flags(names.index(name)), ladder.workload, number)
        if result is not None:
            found[name].append(result)
    return [medians(found[name]) for name in names]


def medians(results: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of every figure; nothing of no results."""
    keys = results[0] if results else ()
    return {key: middle([result[key] for result in results]) or 0.0 for key in keys}


def table(report: Report, ladder: Ladder, results: list[dict[str, float]]) -> None:
    columns = {
        "TTFT ms": "ttft_ms",
        "TPOT ms": "tpot_ms",
        "longest gap ms (p99)": "gap_p99_ms",
        "tok/s": "tokens_per_s",
        "KV pool MiB": "kv_mib",
        "weights MiB": "weights_mib",
        "process MiB": "process_mib",
    }
    base = results[0].get("tokens_per_s")
    rows = []
    for rung, result in zip(ladder.rungs, results, strict=True):
        used = result.get("kv_in_use")
        shown = [result.get(key) for key in columns.values()]
        speedup = ratio(result.get("tokens_per_s"), base)
        rows.append([rung.name, *shown, used and 100 * used, speedup])
    headers = ["rung", *columns, "KV holding tokens %", "× M1"]
    report.table(_described(ladder.workload), headers, rows)
    climbed = sum(1 for result in results if result)
    report.goal(Goal("rungs that ran", climbed, at_least=len(ladder.rungs)))


def _described(work: Workload) -> str:
    low, high = (work.prefix_tokens + tokens for tokens in work.tail_tokens)
    return (
        f"{work.requests} requests at once, prompts of {low}-{high} tokens that begin in one of "
        f"{work.prefixes} ways, answers of {work.output_tokens[0]}-{work.output_tokens[1]}"
    )


def gpu_extras(report: Report, ladder: Ladder, rounds: int) -> None:
    """Compare eager decode with CUDA graphs at batch 1, and that with the memory's bandwidth."""
    best = ladder.flags([rung.name for rung in ladder.rungs].index("M6 prefix caching"))
    runner = Climb(report)
    found: dict[str, list[dict[str, float]]] = {"eager decode": [], "CUDA graph decode": []}
    for number, name in turns(list(found), rounds):
        flags = best | {"enforce_eager": name == "eager decode"}
        result = runner.run(name, flags, SOLO, number)
        if result is not None:
            found[name].append(result)
    eager, graph = (medians(results) for results in found.values())
    report.figure("eager TPOT at batch 1, ms", eager.get("tpot_ms"))
    report.figure("CUDA graph TPOT at batch 1, ms", graph.get("tpot_ms"))
    report.figure("eager / CUDA graph", ratio(eager.get("tpot_ms"), graph.get("tpot_ms")))
    device = torch.cuda.get_device_name()
    peak = next((rate for key, rate in _BANDWIDTH.items() if key in device), None)
    share = bandwidth_share(graph, peak)
    report.goal(Goal(f"share of {device}'s bandwidth in decode, batch 1", share, at_least=0.7))


def bandwidth_share(result: dict[str, float], peak_bytes_per_s: float | None) -> float | None:
    """Return what decode reads of weights a second, as a share of what the memory could give."""
    if not result or not peak_bytes_per_s:
        return None
    bytes_per_s = result["weights_mib"] * 2**20 / (result["tpot_ms"] / 1e3)
    return bytes_per_s / peak_bytes_per_s


def choose_ladder(quick: bool, models: Path) -> Ladder:
    if not torch.cuda.is_available():
        return quick_ladder() if quick else cpu_ladder()
    dense = write(models / "qwen3-0.6b-random")
    full = gpu_ladder(dense, write(models / "qwen3-0.6b-random-gptq", quantized=True))
    return replace(full, workload=replace(GPU_MIXED, requests=64)) if quick else full


def main() -> int:
    parser = argparse.ArgumentParser(description=TITLE)
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of few, short requests")
    add("--rounds", type=int, help="default: 3, or 1 with --quick")
    add("--models-dir", type=Path, default=DEFAULT_FOLDER, help="for the GPU's random model")
    add("--json", metavar="FILE", help="write the results as JSON")
    add("--png", metavar="FILE", help="draw the results")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    ladder = choose_ladder(arguments.quick, arguments.models_dir)
    report = Report(TITLE)
    results = climb(ladder, rounds, report)
    table(report, ladder, results)
    if torch.cuda.is_available():
        gpu_extras(report, ladder, rounds)
    else:
        report.note("no GPU here: bandwidth share and CUDA graphs need one")
        if reason := library.why_not():
            report.note(f"no native rungs: {reason}")
    if arguments.png:
        names = [rung.name for rung in ladder.rungs]
        bars(
            arguments.png,
            TITLE,
            "tok/s",
            names,
            {"tok/s": [r.get("tokens_per_s") for r in results]},
        )
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
