"""What the server tells of itself meanwhile: batch size, KV cache, memory, from /metrics."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stafette.platform.bench.client import Client

_EVERY_S = 0.5
_PATIENCE_S = 5.0
_LINE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{.*\})?\s+(?P<value>\S+)")
# Names that mean the same; those of stafette are vLLM's.
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
_KV_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
_HITS = ("vllm:prefix_cache_hits_total",)
_QUERIES = ("vllm:prefix_cache_queries_total",)
_PREEMPTED = ("vllm:num_preemptions_total",)
_MEMORY = ("process_resident_memory_bytes",)

Sample = Mapping[str, float]


@dataclass(slots=True)
class Watch:
    """Samples of one level; `summary` says what they come to."""

    samples: list[Sample] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return what is known; a server without metrics tells nothing."""
        found: dict[str, Any] = {}
        meanwhile = self.samples[1:-1]  # the outer ones are of a server without this load
        for name, known in (("batch_size", _RUNNING), ("waiting", _WAITING), ("kv_used", _KV_USED)):
            values = _values(meanwhile, known)
            if values:
                found[name] = {"mean": sum(values) / len(values), "most": max(values)}
        if memory := _values(self.samples, _MEMORY):
            found["memory_bytes"] = max(memory)
        if queries := _growth(self.samples, _QUERIES):
            found["kv_hit_rate"] = _growth(self.samples, _HITS) / queries
        if _values(self.samples, _PREEMPTED):
            found["preemptions"] = _growth(self.samples, _PREEMPTED)
        return found


@asynccontextmanager
async def watching(client: Client) -> AsyncIterator[Watch]:
    """Look at the server's metrics before, meanwhile and after."""
    watch = Watch()
    await _look(client, watch)
    task = asyncio.create_task(_keep_looking(client, watch)) if watch.samples else None
    try:
        yield watch
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await _look(client, watch)


def parse_metrics(text: str) -> Sample:
    """Return each metric's sum over its labels."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else _LINE.match(line)
        if match is None:
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        found[match["name"]] = found.get(match["name"], 0.0) + value
    return found


async def _keep_looking(client: Client, watch: Watch) -> None:
    while True:
        await asyncio.sleep(_EVERY_S)
        await _look(client, watch)


async def _look(client: Client, watch: Watch) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reply = await client.get("/metrics")
    except (OSError, TimeoutError):
        return
    if reply.head.status == 200:
        watch.samples.append(parse_metrics(reply.body.decode(errors="replace")))


def _values(samples: Sequence[Sample], names: Sequence[str]) -> list[float]:
    return [sample[name] for sample in samples for name in names if name in sample]


def _growth(samples: Sequence[Sample], names: Sequence[str]) -> float:
    values = _values(samples, names)
    return max(0.0, values[-1] - values[0]) if values else 0.0
