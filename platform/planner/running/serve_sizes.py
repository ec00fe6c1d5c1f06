"""The replica counts of a running application: read from Ray Serve's controller, and changed there.

No public call of Ray's tells the number that was asked for, or changes it, without the dashboard.
What is imported here is what the dashboard's own `/scale` calls (2.60). Two ways lead to another
number: Serve's external scaler, and a policy of its autoscaler.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve._private.common import DeploymentID
from ray.serve._private.exceptions import ExternalScalerDisabledError
from ray.serve.context import _get_global_client

from stafette.platform.planner.config import ScalerName
from stafette.platform.planner.running import plan_policy
from stafette.platform.planner.running.gathering import Unseen

_ANSWER_S = 5.0
_FRESH_S = 0.3


class ServeSizes(ABC):
    """`deployments`: their names, by pool."""

    def __init__(self, application: str, deployments: Mapping[str, str]) -> None:
        client = _get_global_client()
        assert client is not None, "a replica has a controller"
        self._controller: Any = client._controller
        self._application = application
        self._deployments = deployments
        self._known: Mapping[str, int] | None = None
        self._known_at = 0.0

    async def targets(self) -> Mapping[str, int]:
        """Return what Serve has said a moment ago, or ask: each answer costs it milliseconds."""
        now = time.monotonic()
        if self._known is None or now - self._known_at > _FRESH_S:
            self._known, self._known_at = await self._read(), now
        return self._known

    async def resize(self, pool: str, replicas: int) -> None:
        try:
            await self._ask_for(pool, replicas)
        finally:
            self._known = None

    @abstractmethod
    async def _ask_for(self, pool: str, replicas: int) -> None: ...

    async def _read(self) -> Mapping[str, int]:
        details = await self._answer(self._controller.get_serve_instance_details.remote())
        try:
            told = details["applications"][self._application]["deployments"]
            return {
                pool: int(told[name]["target_num_replicas"])
                for pool, name in self._deployments.items()
            }
        except KeyError as error:
            raise Unseen(f"Ray Serve does not tell the size of {error}") from error

    async def _answer(self, asked: Any) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await asked
        except TimeoutError:
            raise Unseen(f"Ray Serve's controller is silent for {_ANSWER_S:g} s") from None
        except ExternalScalerDisabledError:
            raise
        except RayError as error:
            first = str(error).strip().splitlines()[-1]
            raise Unseen(f"Ray Serve's controller does not answer: {first}") from error


class ExternalSizes(ServeSizes):
    """The controller is told."""

    async def _ask_for(self, pool: str, replicas: int) -> None:
        deployment = DeploymentID(self._deployments[pool], self._application)
        asked = self._controller.update_deployment_replicas.remote(deployment, replicas)
        try:
            await self._answer(asked)
        except ExternalScalerDisabledError as error:
            remedy = "set external_scaler_enabled: true beside the application's name"
            raise ValueError(f"Ray Serve lets nobody change sizes: {remedy}") from error


class PolicySizes(ServeSizes):
    """The plan is posted, and the policy in the controller follows it."""

    def __init__(self, application: str, deployments: Mapping[str, str]) -> None:
        super().__init__(application, deployments)
        self._posted: dict[str, int] = {}  # by deployment

    async def _ask_for(self, pool: str, replicas: int) -> None:
        self._posted[self._deployments[pool]] = replicas
        posting = asyncio.to_thread(plan_policy.post, self._application, dict(self._posted))
        try:
            async with asyncio.timeout(_ANSWER_S):
                await posting
        except TimeoutError:
            raise Unseen(f"Ray's head takes no plan for {_ANSWER_S:g} s") from None
        except RayError as error:
            raise Unseen(f"Ray's head takes no plan: {error}") from error


_KINDS: Mapping[ScalerName, type[ServeSizes]] = {"external": ExternalSizes, "policy": PolicySizes}


def serve_sizes(scaler: ScalerName, application: str, deployments: Mapping[str, str]) -> ServeSizes:
    """Return the sizes of an application that is scaled so."""
    return _KINDS[scaler](application, deployments)
