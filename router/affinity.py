"""Sessions and the targets that they were served by: soft is a preference, hard a rule."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, get_args

from stafette.router.errors import InvalidValue

Mode = Literal["off", "soft", "hard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityConfig:
    mode: Mode = "off"
    ttl_s: float = 600.0  # after its latest request
    slack_ms: float = 200.0  # soft: a session stays where it is unless that costs more than this
    max_sessions: int = 100_000

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InvalidValue("affinity.mode", self.mode, f"must be one of {get_args(Mode)}")
        if not self.ttl_s > 0:
            raise InvalidValue("affinity.ttl_s", self.ttl_s, "must be above 0")
        if not self.slack_ms >= 0:
            raise InvalidValue("affinity.slack_ms", self.slack_ms, "must be at least 0")
        if self.max_sessions < 1:
            raise InvalidValue("affinity.max_sessions", self.max_sessions, "must be at least 1")


class Affinity:
    """Not thread-safe."""

    def __init__(self, config: AffinityConfig) -> None:
        self.config = config
        self._bound: OrderedDict[str, tuple[str, float]] = OrderedDict()  # the latest last

    def __len__(self) -> int:
        return len(self._bound)

    def target_of(self, session: str, now: float) -> str | None:
        self._expire(now)
        bound = self._bound.get(session)
        return bound[0] if bound else None

    def bind(self, session: str, target: str, now: float) -> None:
        self._bound[session] = (target, now)
        self._bound.move_to_end(session)
        if len(self._bound) > self.config.max_sessions:
            self._bound.popitem(last=False)

    def forget_target(self, target: str) -> None:
        """Its sessions go where they like."""
        gone = [session for session, bound in self._bound.items() if bound[0] == target]
        for session in gone:
            del self._bound[session]

    def _expire(self, now: float) -> None:
        while self._bound:
            session, (_, used) = next(iter(self._bound.items()))
            if now - used < self.config.ttl_s:
                return
            del self._bound[session]
