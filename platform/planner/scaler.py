"""Carries plans out. The planner itself only decides."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stafette.platform.planner.plan import Plan, RoleFlip


@dataclass(frozen=True, slots=True)
class Effect:
    """What became of one wish."""

    subject: str  # a pool's or a worker's name
    wish: str  # "3 replicas", "role decode", "drain"
    state: Literal["asked", "done", "failed", "not tried"]
    reason: str = ""


class Scaler(ABC):
    """One end of the effects. Every method returns at once; what takes time goes on behind it."""

    @abstractmethod
    def apply(self, plan: Plan) -> None:
        """Begin what the plan wants and is not so yet. A plan that is held changes nothing."""

    @abstractmethod
    def effects(self) -> Sequence[Effect]:
        """Return what became of the wishes since the last call."""

    def leaving(self) -> Collection[str]:
        """Return the workers that are still there, but told to go."""
        return ()


class DryRun(Scaler):
    """Tells what would be done."""

    def __init__(self) -> None:
        self._replicas: dict[str, int] = {}
        self._effects: list[Effect] = []

    def apply(self, plan: Plan) -> None:
        if plan.held is not None:
            return
        self._effects += wishes(plan, self._replicas)
        self._replicas = dict(plan.replicas)

    def effects(self) -> Sequence[Effect]:
        told, self._effects = self._effects, []
        return told


def wishes(plan: Plan, replicas: Mapping[str, int]) -> list[Effect]:
    """Return what a plan would change, where `replicas` were the last wish."""
    changed = {p: n for p, n in plan.replicas.items() if replicas.get(p) != n}
    found = [Effect(p, f"{n} replicas", "not tried", "dry run") for p, n in changed.items()]
    found += [_of_flip(flip) for flip in plan.flips]
    return found + [Effect(w, "drain", "not tried", "dry run") for w in plan.release]


def _of_flip(flip: RoleFlip) -> Effect:
    return Effect(flip.worker, f"role {flip.role}", "not tried", "dry run")
