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
    last: Candidate | None = None  # as it was the last time: most stay as they are

    @property
    def away(self) -> str | None:
        """Why it takes no requests now, whatever they are."""
        if not self.healthy:
            return "is not healthy"
        return "is draining" if self.draining else None
