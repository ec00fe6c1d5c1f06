"""The replica counts of a running application: read from Ray Serve's controller, and changed there.

No public call of Ray's tells the number that was asked for, or changes it, without the dashboard.
What is imported here is what the dashboard's own `/scale` calls (2.60).
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve._private.common import DeploymentID
from ray.serve._private.exceptions import ExternalScalerDisabledError
from ray.serve.context import _get_global_client

from stafette.platform.planner.running.gathering import Unseen

_ANSWER_S = 5.0
_FRESH_S = 0.3


class ServeSizes:
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
        deployment = DeploymentID(self._deployments[pool], self._application)
        asked = self._controller.update_deployment_replicas.remote(deployment, replicas)
        try:
            await self._answer(asked)
        except ExternalScalerDisabledError as error:
            remedy = "set external_scaler_enabled: true beside the application's name"
            raise ValueError(f"Ray Serve lets nobody change sizes: {remedy}") from error
        finally:
            self._known = None

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
