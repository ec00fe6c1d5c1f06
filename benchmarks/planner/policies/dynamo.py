"""Dynamo 1.6's planner, made anew from its description: throughput and load together, target `sla`.

Every 180 s it predicts the requests of the next window and divides them by what one engine does
within the limits; that is the least. Every 5 s it adds one worker to a pool all of whose engines
are estimated to be over the limit, and takes one away when the others could bear its load.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.forecasting.arima import Arima
from stafette.platform.twin.fleet import Replica
from stafette.platform.twin.twin import Twin

_THROUGHPUT_S, _LOAD_S = 180.0, 5.0
_MOST_STEP = 8  # replicas, at a time
_MOST_BATCH = 128  # candidates
_MOST_HIT = 0.95
_SAFE = 0.8  # of a limit, below which one worker fewer is safe
_ARIMA = Arima(1, 1, 0)


@dataclass(frozen=True, slots=True)
class Knobs:
    """What its users turn when it keeps too few promises."""

    tightened: float = 1.0  # the limits that it is told, of those promised
    least: Mapping[str, int] = field(default_factory=lambda: {"prefill": 1, "decode": 1})


@dataclass(slots=True)
class _Traffic:
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answers: int = 0
    output_tokens: int = 0


class Dynamo:
    def __init__(
        self, model: EngineModel, slo: SloConfig, most: int, knobs: Knobs | None = None
    ) -> None:
        self._model, self._most, self._knobs = model, most, knobs or Knobs()
        share = self._knobs.tightened
        self._slo = replace(slo, ttft_ms=share * slo.ttft_ms, itl_ms=share * slo.itl_ms)
        self._window = _Traffic()
        self._counts: list[float] = []
        self._least = dict(self._knobs.least)
        self._isl, self._osl, self._hit = 0.0, 0.0, 0.0
        self._recent: deque[tuple[int, int]] = deque(maxlen=200)
        self._next_throughput_s, self._next_load_s = _THROUGHPUT_S, _LOAD_S

    def __call__(self, twin: Twin, now: float) -> None:
        self._see(twin)
        if now >= self._next_throughput_s:
            self._next_throughput_s += _THROUGHPUT_S
            self._by_throughput(twin)
        elif now >= self._next_load_s:
            self._by_load(twin)
        while self._next_load_s <= now:
            self._next_load_s += _LOAD_S

    def _see(self, twin: Twin) -> None:
        window, seen = twin.observe(), self._window
        seen.requests += window.arrivals
        for prompt, cached in window.started:
            seen.prompt_tokens += prompt
            seen.cached_tokens += cached
            self._recent.append((prompt, cached))
        seen.answers += len(window.served)
        seen.output_tokens += sum(each.output_tokens for each in window.served)

    def _by_throughput(self, twin: Twin) -> None:
        seen, self._window = self._window, _Traffic()
        if seen.requests or self._counts:  # leading zeros are skipped
            self._counts.append(float(seen.requests))
        if not seen.requests or not seen.answers:
            self._least = dict(self._knobs.least)
            return
        self._isl = seen.prompt_tokens / seen.requests
        self._osl = seen.output_tokens / seen.answers
        self._hit = min(seen.cached_tokens / max(seen.prompt_tokens, 1), _MOST_HIT)
        rate = self._predict() / _THROUGHPUT_S
        for pool, able in (("prefill", self._prefill_rps()), ("decode", self._decode_rps())):
            current = twin.fleet.pools[pool].target
            wanted = max(self._knobs.least[pool], ceil(rate / able - 1e-9))
            step = min(max(wanted - current, -_MOST_STEP), _MOST_STEP)
            self._least[pool] = min(current + step, self._most)
            if self._least[pool] > current:
                twin.fleet.set_replicas(pool, self._least[pool])

    def _predict(self) -> float:
        series = np.array(self._counts)
        if len(series) < _ARIMA.least:
            return float(series[-1])
        return max(0.0, float(_ARIMA.path(series, 1)[0]))

    def _prefill_rps(self) -> float:
        p = self._model.performance
        isl = max(1, ceil(self._isl * (1 - self._hit)))
        most = int(min(self._model.max_num_seqs, max(1, p.max_num_batched_tokens // isl)))
        found = []
        for batch in range(1, min(most, _MOST_BATCH) + 1):
            ttft = self._chunked_ms(batch * isl)
            found.append((ttft <= self._slo.ttft_ms, batch / ttft * 1e3))
        return max(found)[1]

    def _decode_rps(self) -> float:
        p, context = self._model.performance, self._isl + self._osl / 2
        most = int(min(self._model.max_num_seqs, max(1, self._model.kv_tokens // context)))
        found = []
        for batch in range(1, most + 1):
            itl = p.decode_step_ms(batch, int(batch * context))
            found.append((itl <= self._slo.itl_ms, batch / (self._osl * itl) * 1e3))
        return max(found)[1]

    def _chunked_ms(self, tokens: float) -> float:
        """Its regression is linear in tokens: pairs count as in prompts of the mean length."""
        p = self._model.performance
        per_token = p.prefill_ms_per_token + p.prefill_ms_per_pair * self._isl / 2
        return ceil(tokens / p.max_num_batched_tokens) * p.step_ms + tokens * per_token

    def _by_load(self, twin: Twin) -> None:
        if self._recent:
            self._isl = sum(prompt for prompt, _ in self._recent) / len(self._recent)
        for pool in ("prefill", "decode"):
            self._load_of(twin, pool)

    def _load_of(self, twin: Twin, pool: str) -> None:
        counts = twin.fleet.counts(pool)
        ready = [r for r in twin.fleet.of(pool) if r.state == "ready" and r.worker is not None]
        current = twin.fleet.pools[pool].target
        if not ready or not self._isl:
            return
        over, safe = self._judge(pool, ready)
        if over and not counts["starting"] and current < self._most:
            twin.fleet.set_replicas(pool, current + 1)
        elif safe and current > max(1, self._least[pool]):
            twin.fleet.set_replicas(pool, current - 1)

    def _judge(self, pool: str, ready: Sequence[Replica]) -> tuple[bool, bool]:
        """Return whether all engines are over the limit, and whether one fewer is safe."""
        shift = len(ready) / max(1, len(ready) - 1)
        stats = [r.worker.stats().scheduler for r in ready if r.worker is not None]
        if pool == "prefill":
            own = self._chunked_ms(self._isl * (1 - self._hit))
            queues = [self._chunked_ms(s.num_queued_tokens) for s in stats]
            over = all(queue + own > self._slo.ttft_ms for queue in queues)
            safe = all(queue * shift < (self._slo.ttft_ms - own) * _SAFE for queue in queues)
            return over, safe and len(ready) > 1
        p, size = self._model.performance, self._model.kv_tokens
        kv = [s.num_blocks_used / s.num_blocks * size for s in stats]
        itls = [
            p.decode_step_ms(s.num_running + s.num_waiting, int(k))
            for s, k in zip(stats, kv, strict=True)
        ]
        over = all(itl > self._slo.itl_ms for itl in itls)
        after = [
            p.decode_step_ms(int((s.num_running + s.num_waiting) * shift), int(k * shift))
            for s, k in zip(stats, kv, strict=True)
        ]
        safe = all(k * shift < size for k in kv)
        safe = safe and all(itl < _SAFE * self._slo.itl_ms for itl in after)
        return over, safe and len(ready) > 1
