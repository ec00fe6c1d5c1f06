"""A worker's metrics: its engine under vLLM's names, what it lends, moves and keeps below.

`model` is the name under which it is served, as vLLM labels its own metrics.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

from prometheus_client.core import Metric

from stafette.kvtransfer.histogram import Histogram
from stafette.kvtransfer.leases.held import EndReason
from stafette.kvtransfer.leases.table import LeaseCounters
from stafette.kvtransfer.tiers.stats import Calls, Counters, StoreStats, TierStats
from stafette.platform.observability.families import Values, counter, gauge, histogram, of_model
from stafette.workers.request_times import RequestTimes
from stafette.workers.service.measured import Measured
from stafette.workers.stats import EngineStats

_BYTES = ("read_bytes", "written_bytes")
_SECONDS = ("read_s", "written_s")
_TIER_EVENTS = ("hits", "stored", "evicted", "lost", "refused", "corrupt", "errors")


class WorkerMetrics:
    def __init__(self, model: str, measure: Callable[[], Measured]) -> None:
        self._model = model
        self._measure = measure

    def collect(self) -> Iterator[Metric]:
        found = self._measure()
        yield from engine_metrics(self._model, found.engine, found.step_seconds)
        if found.times is not None:
            yield from time_metrics(self._model, found.times)
        yield from _standing(found)
        yield from _handovers(found)
        yield from _leases(found.leases)
        if found.tiers is not None:
            yield from tier_metrics(found.tiers)


def engine_metrics(model: str, engine: EngineStats, step_seconds: Histogram) -> Iterator[Metric]:
    scheduler = engine.scheduler
    yield from of_model(
        model,
        gauge("vllm:num_requests_running", "Sequences that are computed.", scheduler.num_running),
        gauge("vllm:num_requests_waiting", "Sequences that wait.", scheduler.num_waiting),
        gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use.", scheduler.kv_cache_usage),
        counter("vllm:prefix_cache_queries", "Tokens looked for.", scheduler.prefix_queries),
        counter("vllm:prefix_cache_hits", "Tokens found.", scheduler.prefix_hits),
        counter("vllm:num_preemptions", "Sequences set back.", scheduler.num_preemptions),
    )
    blocks = {
        "used": scheduler.num_blocks_used,
        "cached": scheduler.num_blocks_cached,
        "all": scheduler.num_blocks,
    }
    yield gauge("stafette_worker_blocks", "KV blocks: held, free but cached, all.", blocks, "state")
    queued = scheduler.num_queued_tokens
    yield gauge("stafette_worker_queued_tokens", "Prompt tokens that no step took in yet.", queued)
    yield counter("stafette_worker_steps", "Steps of the engine.", engine.num_steps)
    about = "Tokens computed, of prompts and of answers."
    yield counter("stafette_worker_computed_tokens", about, engine.num_tokens)
    yield counter("stafette_worker_busy_seconds", "Time spent in steps.", engine.busy_seconds)
    yield histogram("stafette_worker_step_seconds", "Of one step.", step_seconds)


def time_metrics(model: str, times: RequestTimes) -> Sequence[Metric]:
    return of_model(
        model,
        histogram("vllm:request_queue_time_seconds", "Until a step takes it in.", times.queued),
        histogram("vllm:request_prefill_time_seconds", "Then, to its first token.", times.prefill),
        histogram("vllm:request_decode_time_seconds", "Then, to its last token.", times.decode),
    )


def _standing(found: Measured) -> Iterator[Metric]:
    role = {(found.role, str(found.draining).lower()): 1.0}
    yield gauge("stafette_worker_role", "1: it has this role.", role, "role", "draining")
    yield gauge("stafette_worker_alive", "0: its engine has stopped.", float(found.alive))


def _handovers(found: Measured) -> Iterator[Metric]:
    imports, exports = found.imports, found.exports
    tokens: Values = {
        "held": imports.held_tokens,
        "pulled": imports.pulled_tokens,
        "passed_on": exports.passed_tokens,
    }
    about = "Of prompts handed over: found here, brought from elsewhere, given to others."
    yield counter("stafette_handover_tokens", about, tokens, "way")
    prompts = {"in": imports.num_requests, "out": exports.num_requests}
    yield counter("stafette_handovers", "Prompts, brought here or passed on.", prompts, "way")
    about = "Prompts of which less came than there was, by why."
    yield counter("stafette_handover_shortfalls", about, imports.shortfalls, "reason")
    yield gauge("stafette_handover_pinned_blocks", "That others may read.", exports.num_pinned)
    moved = {name: each for name, each in found.transfers.items() if name}
    done = {name: each.done for name, each in moved.items()}
    yield counter("stafette_transfers", "Transfers that are done.", done, "transport")
    nbytes = {name: each.nbytes for name, each in moved.items()}
    yield counter("stafette_transfer_bytes", "That they have brought.", nbytes, "transport")
    seconds = {name: each.seconds for name, each in moved.items()}
    yield counter("stafette_transfer_seconds", "That they took, added up.", seconds, "transport")
    failed = {
        (name or "none", reason): float(count)
        for name, each in found.transfers.items()
        for reason, count in each.failed.items()
    }
    about = "Transfers that failed, by the error's class."
    yield counter("stafette_transfer_failures", about, failed, "transport", "reason")
    yield gauge("stafette_transfers_unsettled", "That may still write.", found.unsettled)
    about = "Connections of peers that were refused, by why."
    yield counter("stafette_peers_refused", about, found.refused_peers, "reason")


def _leases(found: LeaseCounters) -> Iterator[Metric]:
    yield gauge("stafette_leases", "Leases on blocks here that live.", found.living)
    yield counter("stafette_leases_granted", "Leases granted.", found.granted)
    ended = {reason.name.lower(): found.ended[reason] for reason in EndReason}
    yield counter("stafette_leases_ended", "Leases that ended, by why.", ended, "reason")
    about = "Accesses under a lease that had ended, or beyond it."
    yield counter("stafette_lease_refusals", about, found.refused)


def tier_metrics(found: StoreStats) -> Iterator[Metric]:
    tiers: dict[str, TierStats] = {"host": found.host}
    if found.disk is not None:
        tiers["disk"] = found.disk
    blocks = {
        (name, state): float(getattr(tier, f"{state}_blocks"))
        for name, tier in tiers.items()
        for state in ("num", "used", "pinned")
    }
    about = "Blocks of a tier: all (num), used, pinned."
    yield gauge("stafette_tier_blocks", about, blocks, "tier", "state")
    off = {name: float(bool(tier.off)) for name, tier in tiers.items()}
    yield gauge("stafette_tier_off", "1: it failed, and is used no more.", off, "tier")
    counted = {name: tier.counters for name, tier in tiers.items()} | {"peer": found.peer}
    events = _of_tiers(counted, _TIER_EVENTS)
    yield counter("stafette_tier_events", "What became of blocks.", events, "tier", "event")
    about = "Bytes read towards the device, and written away from it."
    yield counter("stafette_tier_bytes", about, _of_tiers(counted, _BYTES), "tier", "way")
    about = "Time that took, in all threads together."
    yield counter("stafette_tier_seconds", about, _of_tiers(counted, _SECONDS), "tier", "way")
    calls = {each.name: getattr(found.calls, each.name) for each in fields(Calls)}
    yield counter("stafette_tier_calls", "What the engine asked for, in blocks.", calls, "call")


def _of_tiers(counted: dict[str, Counters], names: tuple[str, ...]) -> dict[tuple[str, str], float]:
    """Return these counts by tier and name, without the unit that names end with."""
    return {
        (tier, name.removesuffix("_bytes").removesuffix("_s")): float(getattr(counts, name))
        for tier, counts in counted.items()
        for name in names
    }
