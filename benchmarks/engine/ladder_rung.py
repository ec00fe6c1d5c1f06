"""One rung in a process of its own: reads its job as JSON on argv, prints what it measured."""

import json
import sys
from typing import Any

import psutil
import torch

from benchmarks.engine.contenders.protocol import own_stdout
from benchmarks.engine.workload import Workload, run
from stafette.workers import LLM
from stafette.workers.weights.checkpoint import Checkpoint, GroupedWeight
from stafette.workers.weights.opening import open_checkpoint

MIB = 1 << 20


def measure(flags: dict[str, Any], workload: Workload, seed: int) -> dict[str, float]:
    """Return rates, latencies and memory of one engine under the workload."""
    with LLM(**flags) as llm:
        warm = Workload(2, 0, 0, (40, 60), (4, 8))
        run(llm, warm.build(seed=1_000_000))
        llm.engine.reset_prefix_cache()
        found = run(llm, workload.build(seed))
        found["kv_mib"] = llm.engine.stats().scheduler.num_blocks * _block_bytes(llm) / MIB
        found["process_mib"] = _process_bytes() / MIB
    checkpoint = open_checkpoint(flags["model"], flags.get("quantization", "auto"))
    found["weights_mib"] = weight_bytes(checkpoint) / MIB
    return found


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Return what a decode step reads of the weights: bf16, or their quantized form."""
    return sum(_bytes_of(checkpoint.load(name)) for name in checkpoint.names())


def _bytes_of(weight: torch.Tensor | GroupedWeight) -> int:
    if isinstance(weight, torch.Tensor):
        return weight.numel() * 2
    scales = weight.scale.size * (1 if weight.offset is None else 2)
    return weight.codes.size + scales * 2


def _block_bytes(llm: LLM) -> int:
    return llm.engine.executor.runner.kv_layout.block_bytes


def _process_bytes() -> int:
    """Return what the process holds now; on a GPU, the most it held there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    channel = own_stdout()
    job = json.loads(sys.argv[1])
    found = measure(job["flags"], Workload(**job["workload"]), job["seed"])
    channel.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
