"""The plan as an autoscaling policy of Ray Serve's: for its controller, which has nothing of ours.

Serve carries the class there by value. So it imports only what a controller has, reads the plan off
a key of Ray's head (`post` writes it), and never waits: the controller's loop calls it.
"""

import json
import logging
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ray.experimental import internal_kv

_log = logging.getLogger("ray.serve")

_NAMESPACE = b"stafette"


def post(application: str, replicas: Mapping[str, int]) -> None:
    """Write how many replicas the deployments of an application are to have."""
    plan = {"id": uuid.uuid4().hex, "replicas": dict(replicas)}
    internal_kv._internal_kv_put(_key(application), json.dumps(plan), namespace=_NAMESPACE)


def read(application: str) -> bytes | None:
    plan: bytes | None = internal_kv._internal_kv_get(_key(application), namespace=_NAMESPACE)
    return plan


def _key(application: str) -> bytes:
    return f"plan of {application}".encode()


class PlanPolicy:
    """Answers with the plan, for a whole application or for one deployment; else with what is.

    A plan counts that is posted after this policy has looked first: the one before it may be that
    of another life of the application. Whoever posted it in vain sees no change, and posts again.
    """

    def __init__(self, look: Callable[[str], bytes | None] = read) -> None:
        self._look = look
        self._reader = ThreadPoolExecutor(1, "stafette-plan")
        self._reading: Future[bytes | None] | None = None
        self._old: object = None  # the id of the plan that was there before us
        self._looked = False
        self._replicas: Mapping[str, int] = {}

    def __call__(self, asked: Any) -> tuple[Any, dict[Any, Any]]:
        """Take a deployment's AutoscalingContext, or those of an application by DeploymentID."""
        if not isinstance(asked, Mapping):
            self._refresh(asked.app_name)
            return self._wanted(asked), {}
        for context in asked.values():
            self._refresh(context.app_name)
        return {name: self._wanted(context) for name, context in asked.items()}, {}

    def _wanted(self, context: Any) -> int:
        return self._replicas.get(context.deployment_name, context.target_num_replicas)

    def _refresh(self, application: str) -> None:
        """Take what has been read since the last call, and begin to read again."""
        if self._reading is not None:
            if not self._reading.done():
                return
            try:
                self._take(self._reading.result())
            except Exception as error:  # whatever it is, the sizes stay
                _log.warning("the plan of %s cannot be read: %s", application, error)
        self._reading = self._reader.submit(self._look, application)

    def _take(self, told: bytes | None) -> None:
        plan = {} if told is None else json.loads(told)
        if not self._looked:
            self._looked, self._old = True, plan.get("id")
        elif plan.get("id") != self._old:
            self._replicas = plan.get("replicas", {})
