"""How requests are placed on a fleet, and moved on it."""

from dataclasses import dataclass

from stafette.platform.frontend.errors import InvalidSetting

_ABOVE_ZERO = (
    *("wait_s", "wake_wait_s", "prefill_timeout_s"),
    *("retry_after_s", "move_timeout_s", "move_again_s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchConfig:
    model: str  # by which workers and router name it
    loras: tuple[str, ...] = ()  # adapters that requests may name
    wakes: bool = False  # there is a planner that starts workers when requests wait for one
    max_attempts: int = 8  # of one answer, each on workers that were there when it began
    wait_s: float = 30.0  # for a worker, when none can take a request
    wake_wait_s: float = 600.0  # instead, where all are asleep and the planner wakes some
    prefill_timeout_s: float = 120.0
    retry_after_s: float = 1.0  # what a client is told when all are full
    moves_at_a_time: int = 2  # off one worker that drains: each costs its new worker a step
    move_timeout_s: float = 10.0  # until an answer's new worker must be ready to go on with it
    move_again_s: float = 0.2  # after a move that came to nothing

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InvalidSetting(f"dispatch.{name}", getattr(self, name), "must be above 0")
        for name in ("max_attempts", "moves_at_a_time"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"dispatch.{name}", getattr(self, name), "must be at least 1")
