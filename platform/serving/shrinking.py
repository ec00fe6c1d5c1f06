"""Chooses who leaves when a pool shrinks: whoever has the least under way.

Ray Serve takes the newest replica, and cannot be told another. So a worker is told to retire: its
answers move elsewhere with their KV, then it reports itself as not healthy, and Serve stops it.
Serve starts another in its place, which is the newest when the number goes down right afterwards.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from stafette.platform.app import FRONTEND, deployment_name
from stafette.platform.config import Config
from stafette.platform.serving.victims import Worker, victims
from stafette.workers.errors import WorkerLost

_POLL_S = 0.2
_ANSWER_S = 30.0  # for a frontend to answer
_NOTICED_S = 30.0  # until Serve has seen that a worker is not healthy, and has stopped it

Tell = Callable[[str], None]


def retire_surplus(config: Config, tell: Tell) -> None:
    """Let workers go, of pools that have more than the settings say; the rest is Serve's."""
    running = _running(config)
    if not running.get(FRONTEND):
        return
    try:
        _retire_surplus(config, running, tell)
    except TimeoutError:
        tell("no frontend answers: Serve chooses who leaves")


def _retire_surplus(config: Config, running: Mapping[str, int], tell: Tell) -> None:
    frontend = serve.get_deployment_handle(FRONTEND, config.name)
    for name, pool in config.pools.items():
        surplus = running.get(deployment_name(name), 0) - pool.replicas
        if surplus > 0 and pool.replicas:  # of a pool that ends, all leave anyway
            until = time.monotonic() + pool.drain_timeout_s + _NOTICED_S
            chosen = [each["name"] for each in victims(_workers(frontend), name, surplus)]
            _retire(frontend, chosen, until, tell)


def _retire(
    frontend: DeploymentHandle[Any], names: Sequence[str], until: float, tell: Tell
) -> None:
    for name in names:
        tell(f"{name} leaves: it has the least to move")
        try:
            frontend.ask_worker.remote(name, "retire").result(timeout_s=_ANSWER_S)
        except WorkerLost:  # it has left by itself
            continue
    while left := {each["name"] for each in _workers(frontend)}.intersection(names):
        if time.monotonic() > until:
            tell(f"{', '.join(sorted(left))} did not leave in time: Serve chooses instead")
            return
        time.sleep(_POLL_S)


def _workers(frontend: DeploymentHandle[Any]) -> list[Worker]:
    found: list[Worker] = frontend.workers.remote().result(timeout_s=_ANSWER_S)
    return found


def _running(config: Config) -> Mapping[str, int]:
    """Return how many replicas each deployment has now; none where nothing is deployed."""
    status = serve.status().applications.get(config.name)
    if status is None:
        return {}
    states = {name: each.replica_states for name, each in status.deployments.items()}
    return {
        name: sum(count for state, count in found.items() if state == "RUNNING")
        for name, found in states.items()
    }
