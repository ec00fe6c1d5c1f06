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
    away: str | None = None  # why it takes no requests now, whatever they are
    last: Candidate | None = None  # as it was the last time: most stay as they are
