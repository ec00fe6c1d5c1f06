"""The Ray Serve application: `serve run stafette.platform.app:build config=laptop.yaml`.

In a Serve config file, or a RayService, `args` is the tree of settings itself.
"""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from stafette.platform.config import Config, FrontendPool, load, load_mapping
from stafette.platform.frontend.routes.about import own_version
from stafette.platform.planner.running.plan_policy import PlanPolicy
from stafette.platform.planner.running.planner_replica import PlannerReplica
from stafette.platform.planner.running.specs import pool_specs
from stafette.platform.pool_config import PoolConfig
from stafette.platform.serving.frontend_replica import FrontendReplica
from stafette.platform.serving.worker_replica import WorkerReplica

FRONTEND = "Frontend"
PLANNER = "Planner"

_SPARE_S = 15.0  # after what is under way: for closing, before Ray kills the process
_MOST = 1 << 20  # replicas: a pin may go over the planner's bounds
_MANY = 1_000  # of Serve's own requests: none of ours is one


def build(args: Mapping[str, Any]) -> Application:
    """Return the application of these settings; `config` names a file of them instead."""
    rest = {name: value for name, value in args.items() if name != "config"}
    if "config" in args:
        assignments = [f"{name}={value}" for name, value in rest.items()]
        return application(load(Path(str(args["config"])), assignments).config)
    return application(load_mapping(rest, "args").config)


def application(config: Config) -> Application:
    """Tell each little: Serve replaces a deployment's replicas when what they are told changes."""
    workers = [_worker(config, pool) for pool in config.pools]
    told = config.for_frontends()
    deployment = _frontend(config.frontend, told)
    if config.planner.mode == "off":
        return deployment.bind(told, *workers)
    return deployment.bind(told, *workers, planner=_planner(config))


def deployment_name(pool: str) -> str:
    """Return `PrefillWorker` for `prefill`; the workers that do both are just `Worker`."""
    if pool == "aggregated":
        return "Worker"
    return "".join(part.capitalize() for part in pool.split("_")) + "Worker"


def _worker(config: Config, pool: str) -> Application:
    own = config.pools[pool]
    actor = _actor(own.on_each_node)
    if own.env:
        actor["runtime_env"] = {"env_vars": dict(own.env)}
    told = config.for_workers(pool)
    deployment = _deployment(WorkerReplica, deployment_name(pool), own, actor)
    if own.nodes > 1:
        deployment = deployment.options(
            placement_group_bundles=[own.on_each_node.bundle] * own.nodes,
            placement_group_strategy="STRICT_SPREAD",
        )
    if config.follows_policy(pool):
        deployment = deployment.options(num_replicas=None, autoscaling_config=_policy(own.replicas))
    return _versioned(deployment, told).bind(told, pool)


def _policy(replicas: int) -> AutoscalingConfig:
    """Let Serve's autoscaler follow the plan at once: bounds and patience are the planner's.

    A policy of the whole application, where a Serve config names it, goes over this one.
    """
    return AutoscalingConfig(
        min_replicas=0,
        initial_replicas=replicas,
        max_replicas=_MOST,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
        policy=AutoscalingPolicy(policy_function=PlanPolicy),  # type: ignore[no-untyped-call]
    )


def _planner(config: Config) -> Application:
    told, specs = config.for_planner(), pool_specs(config)
    deployment = serve.deployment(
        name=PLANNER,
        num_replicas=1,  # two would undo each other's work
        ray_actor_options={"num_cpus": config.planner.num_cpus},
        max_ongoing_requests=_MANY,
        health_check_period_s=1.0,
        health_check_timeout_s=15.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=_SPARE_S,
    )(PlannerReplica)
    names = {pool: deployment_name(pool) for pool in config.pools}
    return _versioned(deployment, told).bind(told, specs, names, FRONTEND)


def _frontend(own: FrontendPool, told: Config) -> Deployment:
    kind = FrontendReplica if own.ingress == "own" else serve.ingress()(FrontendReplica)
    return _versioned(_deployment(kind, FRONTEND, own, _actor(own)), told)


def _deployment(
    kind: type, name: str, own: PoolConfig | FrontendPool, actor: dict[str, Any]
) -> Deployment:
    return serve.deployment(
        name=name,
        num_replicas=max(own.replicas, 1),  # none can only be asked for later (begin_empty)
        ray_actor_options=actor,
        max_ongoing_requests=_MANY,
        health_check_period_s=1.0,
        health_check_timeout_s=15.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=own.drain_timeout_s + _SPARE_S,
    )(kind)


def _versioned(deployment: Deployment, told: Config) -> Deployment:
    """Keep the replicas of another start whose settings are the same: Serve would replace them all.

    `serve.run` gives a deployment a random version unless it has one; no public argument sets it.
    """
    content = f"{own_version()} {told!r}".encode()
    deployment._version = blake2b(content, key=told.token[:64], digest_size=8).hexdigest()
    return deployment


def _actor(own: PoolConfig | FrontendPool) -> dict[str, Any]:
    return {
        "num_cpus": own.num_cpus,
        "num_gpus": own.num_gpus,
        "resources": dict(own.resources),
    }
