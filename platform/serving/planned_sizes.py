"""Who wins, where settings and a planner both name a pool's size: the planner, once the fleet runs.

What the settings say is the size of the first start. A deployment that is updated keeps the size
that its planner has given it; to overrule the planner, pin the pool.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.serve._private.common import DeploymentID
from ray.serve.context import _get_global_client

from stafette.platform.app import PLANNER, deployment_name
from stafette.platform.config import Config
from stafette.platform.serving.shrinking import Tell
from stafette.workers.errors import EngineDead

_KNOWN_S = 30.0  # until Serve knows what was deployed
_ANSWER_S = 10.0
_POLL_S = 0.1


def with_planned_sizes(config: Config, tell: Tell) -> Config:
    """Return the settings with the sizes that planned pools have now, within their bounds."""
    if config.planner.mode != "on":
        return config
    targets = _targets(config)
    pools = dict(config.pools)
    for name, limits in config.planner.pools.items():
        target = targets.get(deployment_name(name))
        if target is None:
            continue
        kept = min(max(target, limits.min_replicas), limits.max_replicas)
        if kept != pools[name].replicas:
            tell(f"{name} stays at {kept}: it is planned, its replicas are for the first start")
            pools[name] = replace(pools[name], replicas=kept)
    return replace(config, pools=pools)


def begin_empty(config: Config) -> None:
    """Ask for no replica where the settings want none: Serve takes that from no deployment.

    (From one with a policy it does.)
    """
    empty = [
        deployment_name(name)
        for name, pool in config.pools.items()
        if not pool.replicas and not config.follows_policy(name)
    ]
    until = time.monotonic() + _KNOWN_S
    client = _get_global_client()
    assert client is not None, "it was connected to"
    for name in empty:
        while not _resized(client._controller, DeploymentID(name, config.name)):
            if time.monotonic() > until:
                remedy = f"not known to Ray Serve after {_KNOWN_S:g} s: `serve status` tells why"
                raise EngineDead("deployment", name, remedy)
            time.sleep(_POLL_S)


def _resized(controller: Any, deployment: DeploymentID) -> bool:
    """Return False as long as Serve does not know the deployment yet."""
    try:
        _answer(controller.update_deployment_replicas.remote(deployment, 0))
    except ValueError:
        return False
    return True


def _targets(config: Config) -> Mapping[str, int]:
    """Return how many replicas each deployment is to have, where a planner runs."""
    client = _get_global_client()
    assert client is not None, "it was connected to"
    details = _answer(client._controller.get_serve_instance_details.remote())
    application = details.get("applications", {}).get(config.name, {})
    deployments = application.get("deployments", {})
    if PLANNER not in deployments:
        return {}
    return {name: int(each["target_num_replicas"]) for name, each in deployments.items()}


def _answer(asked: Any) -> Any:
    try:
        return ray.get(asked, timeout=_ANSWER_S)
    except GetTimeoutError:
        remedy = f"no answer within {_ANSWER_S:g} s: `serve status` and `ray status` tell why"
        raise EngineDead("Ray Serve's controller", "silent", remedy) from None
