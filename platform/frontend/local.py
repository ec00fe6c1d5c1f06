"""The generator that is one engine in this process."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from stafette.platform.frontend.generator import Hints, Status
from stafette.workers.async_engine import AsyncEngine
from stafette.workers.logging_context import REQUEST
from stafette.workers.request import OutputDelta, Request


class LocalGenerator:
    """Has no choice of workers, so that hints mean nothing to it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def stream(self, request: Request, hints: Hints) -> AsyncGenerator[list[OutputDelta], None]:
        REQUEST.set(request.request_id)
        return self._engine.stream(request)

    def placement(self, request_id: str) -> Mapping[str, Any] | None:
        return None

    def workers(self) -> list[dict[str, Any]]:
        return []

    def decisions(self, query: str) -> Mapping[str, Any]:
        return {"decisions": [], "counters": {}}

    def status(self) -> Status:
        scheduler = self._engine.stats().scheduler
        return Status(
            alive=self._engine.is_alive,
            ready=self._engine.is_alive,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_cache_usage=scheduler.kv_cache_usage,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            num_preemptions=scheduler.num_preemptions,
            loras=tuple(self._engine.engine.adapters.names),
        )
