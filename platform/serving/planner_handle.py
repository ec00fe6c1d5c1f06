"""The planner as frontends reach it: by its Ray Serve handle, which carries no request's token."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from stafette.platform.frontend.errors import InvalidSetting, Unavailable
from stafette.platform.frontend.fleet_planner import FleetPlanner

_ANSWER_S = 5.0


class PlannerHandle(FleetPlanner):
    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def overview(self, last: int) -> dict[str, Any]:
        found: dict[str, Any] = await _answer(self._handle.overview.remote(last))
        return found

    async def pin(self, pool: str, replicas: int, for_s: float) -> None:
        await _answer(self._handle.pin.remote(pool, replicas, for_s))

    async def unpin(self, pool: str) -> bool:
        return bool(await _answer(self._handle.unpin.remote(pool)))


async def _answer(asked: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await asked
    except TimeoutError:
        reason = f"no word for {_ANSWER_S:g} s"
    except RayTaskError as error:
        if isinstance(error.cause, InvalidSetting):
            raise error.cause from None
        reason = repr(error.cause)
    except (RayError, RayServeException) as error:
        reason = type(error).__name__
    raise Unavailable(f"the planner does not answer ({reason}): it may be starting, ask again")
