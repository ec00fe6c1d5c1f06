"""Shows a router to Prometheus. No label holds a worker, a model or a client: none can grow."""

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from stafette.router.service.router_metrics import (
    by,
    counter,
    gauge,
    gossip_metrics,
    router_metrics,
)
from stafette.router.service.service import RouterService

_SELECT_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1, 1.0, 10.0)


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
        service = self._service
        yield from router_metrics(service.router, service.events)
        yield from self._requests()
        if service.gossip is not None:
            yield from gossip_metrics(service.router, service.gossip)
        yield self._traffic.select_seconds()
        answers = dict(self._traffic.answers)
        labels = ["path", "code"]
        yield counter("http_answers", "Answers, by path and what was told.", answers, labels)

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
        yield gauge("reservations", "Requests that this router has placed.", own)
        expired = {
            "reservation": service.requests.leases.expired,
            "worker": service.workers.leases.expired,
        }
        yield counter("leases_expired", "Leases that nobody renewed.", by(expired), ["of"])
        yield gauge("waiting", "Requests that wait for a free worker.", len(room))
        yield counter("rejected", "Requests told to come again.", room.rejected)
        yield gauge("http_in_flight", "Requests under way.", self._traffic.in_flight)
