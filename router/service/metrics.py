"""Shows a router to Prometheus. No label holds a worker, a model or a client: none can grow."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from stafette.router.service.service import RouterService

_SELECT_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1, 1.0, 10.0)
_DROPPED = ("unknown_source", "stale_epoch", "malformed", "foreign_block_size", "unknown_parent")
_STREAMS = ("delivered", "duplicates", "gaps", "replays", "failed_replays", "resets", "lost")


class Traffic:
    """What the HTTP side counts: answers by path and code, and how long a select took."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        self.in_flight = 0
        self._select_counts = [0] * (len(_SELECT_S) + 1)
        self._select_s = 0.0

    def selected(self, seconds: float) -> None:
        place = sum(seconds > bound for bound in _SELECT_S)
        self._select_counts[place] += 1
        self._select_s += seconds

    def select_seconds(self) -> Metric:
        total, buckets = 0, []
        for bound, count in zip([*map(str, _SELECT_S), "+Inf"], self._select_counts, strict=True):
            total += count
            buckets.append((bound, total))
        name = "stafette_router_select_seconds"
        family = HistogramMetricFamily(
            name, "From a select's body to its answer, waiting included."
        )
        family.add_metric([], buckets, self._select_s)
        return family


class Exposition:
    """Renders one service's metrics in the format that the scraper asks for."""

    def __init__(self, service: RouterService, traffic: Traffic) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Router(service, traffic))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


class _Router(Collector):
    def __init__(self, service: RouterService, traffic: Traffic) -> None:
        self._service = service
        self._traffic = traffic

    def collect(self) -> Iterable[Metric]:
        yield from self._decisions()
        yield from self._index()
        yield from self._requests()
        yield from self._routers()
        yield self._traffic.select_seconds()
        answers = dict(self._traffic.answers)
        labels = ["path", "code"]
        yield _counter("http_answers", "Answers, by path and what was told.", answers, labels)

    def _decisions(self) -> Iterator[Metric]:
        counts = self._service.router.decisions.counters
        decisions = {"placed": counts.decisions, "no_candidate": counts.rejected}
        yield _counter("decisions", "Decisions, by how they ended.", _by(decisions), ["result"])
        tokens = {
            "chosen": counts.chosen_cached_tokens,
            "best": counts.best_cached_tokens,
            "predicted": counts.predicted_cached_tokens,
            "actual": counts.actual_cached_tokens,
        }
        about = "Prompt tokens cached: on the chosen worker, on the best one; predicted and actual."
        yield _counter("cached_tokens", about, _by(tokens), ["which"])
        yield _counter("prompt_tokens", "Prompt tokens of all decisions.", counts.prompt_tokens)
        about = "Decisions for a worker that did not hold most."
        yield _counter("not_best_overlap", about, counts.not_best_overlap)
        about = "Decisions with a prefill worker of its own."
        yield _counter("remote_prefills", about, counts.remote_prefills)
        yield _counter("pulls", "Decisions to pull blocks from a third worker.", counts.pulls)
        yield _counter("outcomes", "Decisions whose truth is known.", counts.outcomes)
        yield _counter("ttft_seconds", "First-token times, summed.", counts.ttft_ms / 1e3)
        about = "By how much they were predicted wrong, summed."
        yield _counter("ttft_error_seconds", about, counts.ttft_abs_error_ms / 1e3)
        about = "How much sooner another worker had promised the first token, summed."
        yield _counter("regret_seconds", about, counts.regret_ms / 1e3)

    def _index(self) -> Iterator[Metric]:
        index = self._service.router.index
        stats, counts = index.stats(), index.counters
        yield _gauge("index_blocks", "Blocks that some worker holds.", stats.blocks)
        yield _gauge("index_entries", "Pairs of a block and a worker that holds it.", stats.entries)
        yield _gauge("index_bytes", "Memory of the index; 0: not known.", stats.bytes)
        yield _counter("index_evicted", "Entries dropped because it was full.", stats.evicted)
        events = {"applied": counts.events} | {name: getattr(counts, name) for name in _DROPPED}
        about = "Events taken, and batches or events dropped, by cause."
        yield _counter("events", about, _by(events), ["result"])
        streams = asdict(self._service.events.counters())
        wanted = {name: streams[name] for name in (*_STREAMS, "malformed")}
        yield _counter("event_batches", "What came of the streams.", _by(wanted), ["result"])

    def _requests(self) -> Iterator[Metric]:
        service = self._service
        members = list(service.router.fleet.members.values())
        states = {
            "healthy": sum(one.away is None for one in members),
            "unhealthy": sum(not one.healthy for one in members),
            "draining": sum(one.healthy and one.draining for one in members),
        }
        family = GaugeMetricFamily("stafette_router_workers", "Workers.", labels=["state"])
        for state, count in states.items():
            family.add_metric([state], count)
        yield family
        own, room = len(service.router.sharing.own), service.requests.room
        yield _gauge("reservations", "Requests that this router has placed.", own)
        expired = {
            "reservation": service.requests.leases.expired,
            "worker": service.workers.leases.expired,
        }
        yield _counter("leases_expired", "Leases that nobody renewed.", _by(expired), ["of"])
        yield _gauge("waiting", "Requests that wait for a free worker.", len(room))
        yield _counter("rejected", "Requests told to come again.", room.rejected)
        yield _gauge("http_in_flight", "Requests under way.", self._traffic.in_flight)

    def _routers(self) -> Iterator[Metric]:
        gossip = self._service.gossip
        if gossip is None:
            return
        counts, shared = gossip.counters, self._service.router.sharing.counters
        yield _gauge("peers", "Routers that were heard of late.", len(gossip.peers))
        messages = {
            "sent": counts.sent,
            "unsent": counts.unsent,
            "received": counts.received,
            "malformed": counts.malformed,
            "applied": shared.applied,
            "repeated": shared.repeated,
            "unknown": shared.unknown,
        }
        yield _counter("gossip", "What routers told each other.", _by(messages), ["result"])
        yield _counter("lost_peers", "Routers that fell silent.", counts.lost_peers)


def _by(values: dict[str, int]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"stafette_router_{name}", about, value=value)


def _counter(
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
