"""A frontend's view of its fleet: the workers it sees, its router, what became of answers."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from prometheus_client.core import Metric

from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.platform.observability.families import counter, gauge
from stafette.platform.serving.dispatcher import Dispatcher
from stafette.platform.serving.fleet import WorkerFleet
from stafette.router.service.gossip import Gossip
from stafette.router.service.router_metrics import gossip_metrics, router_metrics


class FleetMetrics:
    """`gossip` None: this frontend is alone."""

    def __init__(
        self,
        fleet: WorkerFleet,
        dispatcher: Dispatcher,
        events: EventSubscriber,
        gossip: Gossip | None = None,
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._events = events
        self._gossip = gossip

    def collect(self) -> Iterator[Metric]:
        router = self._fleet.router
        yield from router_metrics(router, self._events)
        if self._gossip is not None:
            yield from gossip_metrics(router, self._gossip)
        yield from self._of_answers()
        workers = Counter(_standing(client.load) for client in self._fleet.clients.values())
        waiting = self._dispatcher.placer.num_waiting
        yield gauge("stafette_dispatch_waiting", "Answers that no worker has yet.", waiting)
        about = "Workers that this frontend is connected to."
        yield gauge("stafette_workers", about, workers, "role", "draining")

    def _of_answers(self) -> Iterator[Metric]:
        counts, moves = asdict(self._dispatcher.counters), self._dispatcher.mover.counters
        about = "What became of requests and of the legs of their answers."
        yield counter("stafette_dispatch", about, counts, "what")
        moved = {"moved": moves.moved, "failed": moves.failed}
        yield counter("stafette_moves", "Answers taken off workers that drain.", moved, "result")


def _standing(load: Mapping[str, object]) -> tuple[str, str]:
    return str(load.get("role", "unknown")), str(bool(load.get("draining"))).lower()
