"""A fixed mix of requests, long and short, many with a prefix in common; and what became of it."""

import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from stafette.workers import LLM, SamplingParams
from stafette.workers.request import OutputDelta, Request

TOKEN_IDS = range(1_000, 40_000)


@dataclass(frozen=True, slots=True)
class Workload:
    """All requests come at once; each begins with one of a few prefixes."""

    requests: int
    prefixes: int  # how many different beginnings there are
    prefix_tokens: int
    tail_tokens: tuple[int, int]  # least and most
    output_tokens: tuple[int, int]

    def build(self, seed: int) -> list[Request]:
        """Return the same requests for the same seed. Most are short, a few are long."""
        draw = random.Random(seed)
        starts = [draw.choices(TOKEN_IDS, k=self.prefix_tokens) for _ in range(self.prefixes)]
        return [self._request(draw, f"{seed}-{n}", starts) for n in range(self.requests)]

    def _request(self, draw: random.Random, name: str, starts: list[list[int]]) -> Request:
        start = draw.choice(starts) if starts else []
        tail = draw.choices(TOKEN_IDS, k=_skewed(draw, self.tail_tokens))
        tokens = _skewed(draw, self.output_tokens)
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        return Request(request_id=name, prompt_token_ids=start + tail, params=params)


def _skewed(draw: random.Random, bounds: tuple[int, int]) -> int:
    least, most = bounds
    return least + round((most - least) * draw.random() ** 3)


@dataclass(slots=True)
class _Trace:
    """When a request's tokens came."""

    prompt_tokens: int
    output_tokens: int  # in the end
    times: list[float] = field(default_factory=list)

    def add(self, tokens: int, now: float) -> None:
        self.times += [now] * tokens

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + len(self.times)

    @property
    def running(self) -> bool:
        return 0 < len(self.times) < self.output_tokens


def run(llm: LLM, requests: Iterable[Request]) -> dict[str, float]:
    """Serve the requests to their end; return rates and latencies."""
    traces: dict[str, _Trace] = {}
    started = time.perf_counter()
    for request in requests:
        llm.engine.add(request)
        wanted = request.params.max_tokens or 0
        traces[request.request_id] = _Trace(len(request.prompt_token_ids), wanted)
    shares = []
    while llm.engine.has_work:
        _book(traces, llm.engine.step(), time.perf_counter())
        share = _share_in_use(llm, traces)
        if share is not None:
            shares.append(share)
    seconds = time.perf_counter() - started
    return {
        **_latencies(traces, started),
        **_rates(traces, seconds),
        "kv_in_use": fmean(shares or [0]),
    }


def _book(traces: Mapping[str, _Trace], deltas: list[OutputDelta], now: float) -> None:
    for delta in deltas:
        if delta.error is not None:
            raise RuntimeError(f"request {delta.request_id} failed: {delta.error}")
        traces[delta.request_id].add(len(delta.token_ids), now)


def _share_in_use(llm: LLM, traces: Mapping[str, _Trace]) -> float | None:
    """Return the tokens of running requests per token of KV that is held for them."""
    held = llm.engine.stats().scheduler.num_blocks_used * llm.engine.config.block_size
    stored = sum(trace.num_tokens for trace in traces.values() if trace.running)
    return stored / held if held and stored else None


def _latencies(traces: Mapping[str, _Trace], started: float) -> dict[str, float]:
    gaps = [
        later - earlier
        for trace in traces.values()
        for earlier, later in zip(trace.times, trace.times[1:], strict=False)
    ]
    per_token = [
        (trace.times[-1] - trace.times[0]) / (len(trace.times) - 1)
        for trace in traces.values()
        if len(trace.times) > 1
    ]
    return {
        "ttft_ms": 1e3 * median(trace.times[0] - started for trace in traces.values()),
        "tpot_ms": 1e3 * median(per_token),
        "gap_p99_ms": 1e3 * sorted(gaps)[int(0.99 * (len(gaps) - 1))],
    }


def _rates(traces: Mapping[str, _Trace], seconds: float) -> dict[str, Any]:
    tokens = sum(trace.num_tokens for trace in traces.values())
    return {"seconds": seconds, "tokens_per_s": tokens / seconds}
