"""A registered target as the router keeps it: what it told of itself, its load, its speed."""

from dataclasses import dataclass

from stafette.router.load import Load
from stafette.router.performance import Learner
from stafette.router.request import Candidate, WorkerSpec


@dataclass(slots=True)
class Member:
    spec: WorkerSpec
    load: Load
    learner: Learner
    healthy: bool = True
    draining: bool = False
    away: str | None = None  # why it takes no requests now, whatever they are: asked of it often
    last: Candidate | None = None  # as it was the last time: most stay as they are

    def set_state(self, healthy: bool, draining: bool) -> None:
        self.healthy, self.draining = healthy, draining
        self.away = "is draining" if draining else None
        if not healthy:
            self.away = "is not healthy"
