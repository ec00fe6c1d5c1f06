"""A router's metrics, wherever it runs. No label holds a worker, a model or a client."""

from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.router.router import KvRouter
from stafette.router.service.gossip import Gossip

_DROPPED = ("unknown_source", "stale_epoch", "malformed", "foreign_block_size", "unknown_parent")
_STREAMS = ("delivered", "duplicates", "gaps", "replays", "failed_replays", "resets", "lost")


def router_metrics(router: KvRouter, stream: EventSubscriber) -> Iterator[Metric]:
    """Decisions, index, and the events that feed it."""
    yield from _decisions(router)
    yield from _index(router, stream)


def gossip_metrics(router: KvRouter, gossip: Gossip) -> Iterator[Metric]:
    counts, shared = gossip.counters, router.sharing.counters
    yield gauge("peers", "Routers that were heard of late.", len(gossip.peers))
    messages = {
        "sent": counts.sent,
        "unsent": counts.unsent,
        "received": counts.received,
        "malformed": counts.malformed,
        "applied": shared.applied,
        "repeated": shared.repeated,
        "unknown": shared.unknown,
    }
    yield counter("gossip", "What routers told each other.", by(messages), ["result"])
    yield counter("lost_peers", "Routers that fell silent.", counts.lost_peers)


def _decisions(router: KvRouter) -> Iterator[Metric]:
    counts = router.decisions.counters
    decisions = {"placed": counts.decisions, "no_candidate": counts.rejected}
    yield counter("decisions", "Decisions, by how they ended.", by(decisions), ["result"])
    tokens = {
        "chosen": counts.chosen_cached_tokens,
        "best": counts.best_cached_tokens,
        "predicted": counts.predicted_cached_tokens,
        "actual": counts.actual_cached_tokens,
    }
    about = "Prompt tokens cached: on the chosen worker, on the best one; predicted and actual."
    yield counter("cached_tokens", about, by(tokens), ["which"])
    yield counter("prompt_tokens", "Prompt tokens of all decisions.", counts.prompt_tokens)
    about = "Decisions for a worker that did not hold most."
    yield counter("not_best_overlap", about, counts.not_best_overlap)
    about = "Decisions with a prefill worker of its own."
    yield counter("remote_prefills", about, counts.remote_prefills)
    yield counter("pulls", "Decisions to pull blocks from a third worker.", counts.pulls)
    yield counter("outcomes", "Decisions whose truth is known.", counts.outcomes)
    yield counter("ttft_seconds", "First-token times, summed.", counts.ttft_ms / 1e3)
    about = "By how much they were predicted wrong, summed."
    yield counter("ttft_error_seconds", about, counts.ttft_abs_error_ms / 1e3)
    about = "How much sooner another worker had promised the first token, summed."
    yield counter("regret_seconds", about, counts.regret_ms / 1e3)


def _index(router: KvRouter, stream: EventSubscriber) -> Iterator[Metric]:
    index = router.index
    stats, counts = index.stats(), index.counters
    yield gauge("index_blocks", "Blocks that some worker holds.", stats.blocks)
    yield gauge("index_entries", "Pairs of a block and a worker that holds it.", stats.entries)
    yield gauge("index_bytes", "Memory of the index; 0: not known.", stats.bytes)
    yield counter("index_evicted", "Entries dropped because it was full.", stats.evicted)
    events = {"applied": counts.events} | {name: getattr(counts, name) for name in _DROPPED}
    about = "Events taken, and batches or events dropped, by cause."
    yield counter("events", about, by(events), ["result"])
    streams = asdict(stream.counters())
    wanted = {name: streams[name] for name in (*_STREAMS, "malformed")}
    yield counter("event_batches", "What came of the streams.", by(wanted), ["result"])


def by(values: dict[str, int]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}


def gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"stafette_router_{name}", about, value=value)


def counter(
    name: str,
    about: str,
    value: float | dict[tuple[str, ...], float] | dict[tuple[str, str], int],
    labels: list[str] | None = None,
) -> Metric:
    family = CounterMetricFamily(f"stafette_router_{name}", about, labels=labels or [])
    values = {(): value} if isinstance(value, int | float) else value
    for names, one in sorted(values.items()):
        family.add_metric(list(names), one)
    return family
