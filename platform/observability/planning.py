"""The planner's metrics: what it sees, expects and wants."""

from collections.abc import Iterator

from prometheus_client.core import Metric

from stafette.platform.observability.families import gauge
from stafette.platform.planner.plan import Plan
from stafette.platform.planner.running.service import PlannerService

_COUNTS = ("planned", "target", "ready")


class PlannerMetrics:
    def __init__(self, service: PlannerService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        pools = self._service.overview(1)["pools"]
        replicas = {
            (pool, what): float(found[what])
            for pool, found in pools.items()
            for what in _COUNTS
            if found[what] is not None
        }
        about = "Workers: that the last plan wants, that Serve is told of, that are ready."
        yield gauge("stafette_planner_replicas", about, replicas, "of", "what")
        pinned = {pool: float(found["pin"] is not None) for pool, found in pools.items()}
        yield gauge("stafette_planner_pinned", "1: somebody has set this pool.", pinned, "of")
        if plans := self._service.planner.plans:
            yield from _of_plan(plans[-1])


def _of_plan(plan: Plan) -> Iterator[Metric]:
    held = float(plan.held is not None)
    yield gauge("stafette_planner_held", "1: it saw too little to decide.", held)
    late = {each.target: each.expected_ms / 1e3 for each in plan.violations}
    about = "What it expects of a promise that it cannot keep, in seconds."
    yield gauge("stafette_planner_broken_promise_seconds", about, late, "target")
    explained = plan.explanation
    about = "What it has seen of requests and workers, by name."
    yield gauge("stafette_planner_observed", about, explained.observed, "what")
    about = "Requests a second that it expects."
    yield gauge("stafette_planner_predicted", about, explained.predicted, "what")
    about = "Workers by role that the load needs, before any limit."
    yield gauge("stafette_planner_needed", about, explained.needed, "role")
