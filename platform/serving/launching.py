"""Starts the application on Ray: a cluster where there is none, Serve, and then every deployment.

Says on a terminal how far it is, and in one line what stands in the way.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray import serve
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.services import find_gcs_addresses
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from stafette.platform.app import FRONTEND, application, deployment_name
from stafette.platform.config import Config
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.server import listen
from stafette.platform.serving.planned_sizes import begin_empty, with_planned_sizes
from stafette.platform.serving.shrinking import Tell, retire_surplus
from stafette.workers.errors import EngineDead
from stafette.workers.weights.advised_sampling import advised_sampling
from stafette.workers.weights.opening import resolve

LOCAL = "local"
_LOOPBACK = "127.0.0.1"
_POLL_S = 0.3  # of what costs Serve tens of milliseconds to tell
_OBJECT_STORE_BYTES = 100 << 20  # no token and no block passes it
_LOG_BYTES = 64 << 20  # of each process; then a new file is begun
_OLD_LOGS = 2
_READ_TIMEOUT_S = 30.0
_SICK_S = 20.0
_MORE_TO_END_S = 30.0  # than what is under way may take: processes close, Serve looks


@dataclass(frozen=True, slots=True, kw_only=True)
class RayChoice:
    """Where to run. `address` None: RAY_ADDRESS, or this machine's cluster, or a new one."""

    address: str | None = None
    stays: bool = False  # what is deployed, when we leave
    log_to_driver: bool = False


@contextmanager
def on_ray(config: Config, choice: RayChoice, tell: Tell) -> Iterator[None]:
    """Be connected to a cluster. One of our own ends with us."""
    named = choice.address or os.environ.get("RAY_ADDRESS")
    address = named or _running_cluster()
    if address in (None, LOCAL):
        address = LOCAL
        if choice.stays:
            remedy = "would end with this command: there is no cluster to leave it on"
            raise InvalidSetting("--detach", True, remedy)
        check_room(config)
        resolve(config.model)
        advised_sampling(config.frontend.generation_config, config.model)
        listen(config.frontend).close()  # a port in use is known before anything is started
        tell("starting Ray on this machine")
    else:
        found = "" if named else ", which runs on this machine (--address local: a new one)"
        tell(f"connecting to Ray at {address}{found}")
    _connect(address, choice)
    if address == LOCAL:
        tell(f"Ray is at {ray.get_runtime_context().gcs_address}")
    try:
        if address != LOCAL and not named:
            _refuse_to_replace(config, address)
        yield
    finally:
        ray.shutdown()


def _refuse_to_replace(config: Config, address: str) -> None:
    """Whoever named no cluster may not know what serves there, and would end it with Ctrl-C."""
    if config.name in serve.status().applications:
        remedy = (
            f"serves at {address} already, and would be replaced: --address {address} says that it"
            " shall; --set name=OTHER with another --port starts one beside it, --address local"
            " one on a new cluster"
        )
        raise InvalidSetting("name", config.name, remedy)


def check_room(config: Config) -> None:
    """Refuse what a machine with these cores cannot place, instead of waiting for ever."""
    wanted = sum(pool.replicas * pool.num_cpus for pool in config.pools.values())
    wanted += config.frontend.replicas * config.frontend.num_cpus
    cores = os.cpu_count() or 1
    if wanted > cores:
        remedy = f"are more than this machine's {cores}: lower replicas or num_cpus of the pools"
        raise InvalidSetting("pools: num_cpus in all", wanted, remedy)
    for name, pool in config.pools.items():
        if pool.nodes > 1:
            remedy = "is more than this machine: `ray start` on each node, and name the --address"
            raise InvalidSetting(f"pools.{name}.nodes", pool.nodes, remedy)


def deploy(config: Config, tell: Tell) -> str:
    """Start, or update, the application; return its URL when all of it is ready."""
    behind_serve = config.frontend.ingress == "serve"
    if behind_serve:
        serve.start(http_options={"host": config.frontend.host, "port": config.frontend.port})
    else:
        serve.start(proxy_location="Disabled")
    if config.name in serve.status().applications:
        tell(f"{config.name} serves there already: it is updated")
    config = with_planned_sizes(config, tell)
    retire_surplus(config, tell)
    target = serve.RunTarget(
        application(config),
        config.name,
        route_prefix="/" if behind_serve else None,
        external_scaler_enabled=config.planner.mode == "on" and config.planner.scaler == "external",
    )
    serve.run_many(
        [target],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    begin_empty(config)
    _await_running(config, tell)
    if behind_serve:
        return f"http://{config.frontend.host}:{config.frontend.port}"
    handle = serve.get_deployment_handle(FRONTEND, config.name)
    return str(handle.url.remote().result(timeout_s=_READ_TIMEOUT_S))


def remove(config: Config, tell: Tell) -> None:
    """End the application; what is under way is seen through, as long as the settings say."""
    serve.delete(config.name, _blocking=False)  # its own waiting ends after a minute
    pools = [pool.drain_timeout_s for pool in config.pools.values()]
    until = time.monotonic() + max(*pools, config.frontend.drain_timeout_s) + _MORE_TO_END_S
    while config.name in serve.status().applications:
        if time.monotonic() > until:
            tell("some of it has not ended in time, and is left to Ray")
            return
        time.sleep(_POLL_S)


def _connect(address: str, choice: RayChoice) -> None:
    level = logging.INFO if choice.log_to_driver else logging.ERROR
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(level)
    if address != LOCAL:
        _join(address, level, choice.log_to_driver)
        return
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let anything go before us
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "1" if choice.log_to_driver else "0")
    os.environ.setdefault("RAY_ROTATION_MAX_BYTES", str(_LOG_BYTES))
    os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", str(_OLD_LOGS))
    ray.init(
        LOCAL,
        _node_ip_address=_LOOPBACK,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        logging_level=level,
        log_to_driver=choice.log_to_driver,
    )


def _join(address: str, level: int, log_to_driver: bool) -> None:
    """Connect to a cluster that runs, with the token that this machine has for it."""
    # Ray itself looks for a token only where it is not told an address.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ray.init(address, logging_level=level, log_to_driver=log_to_driver)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].partition(" Note: ")[0]
        remedy = f"cannot be joined: is that the address of a head, and Ray's token there? {reason}"
        raise EngineDead("ray address", address, remedy) from error


def _running_cluster() -> str | None:
    """Return the address of the cluster that `ray start` left running here, if there is one."""
    found: set[str] = find_gcs_addresses()  # type: ignore[no-untyped-call]
    return min(found, default=None)


def _await_running(config: Config, tell: Tell) -> None:
    ready: dict[str, int] = {}
    began, sick = time.monotonic(), _Sickness()
    while time.monotonic() - began < config.start_timeout_s:
        status = serve.status().applications.get(config.name)
        if status is not None:
            _tell_news(
                config, status, ready, lambda t: tell(f"{t} ({time.monotonic() - began:.0f} s)")
            )
            if status.status == ApplicationStatus.RUNNING:
                return
            if status.status == ApplicationStatus.DEPLOY_FAILED or sick.lasts(status):
                raise EngineDead("application", config.name, _reason(status))
        time.sleep(_POLL_S)
    remedy = f"not ready after {config.start_timeout_s:g} s: `ray status` tells what it waits for"
    raise EngineDead("application", config.name, f"{remedy}; or raise start_timeout_s")


class _Sickness:
    """A replica that is replaced makes its deployment unhealthy for a moment: that is no end."""

    def __init__(self) -> None:
        self._since: float | None = None

    def lasts(self, status: ApplicationStatusOverview) -> bool:
        if status.status != ApplicationStatus.UNHEALTHY:
            self._since = None
            return False
        if self._since is None:
            self._since = time.monotonic()
        return time.monotonic() - self._since > _SICK_S


def _tell_news(
    config: Config, status: ApplicationStatusOverview, ready: dict[str, int], tell: Tell
) -> None:
    wanted = {deployment_name(name): pool.replicas for name, pool in config.pools.items()}
    wanted[FRONTEND] = config.frontend.replicas
    for name, deployment in status.deployments.items():
        running = sum(n for state, n in deployment.replica_states.items() if state == "RUNNING")
        if running != ready.get(name, 0):
            ready[name] = running
            tell(f"{name}: {running} of {wanted.get(name, running)} ready")


def _reason(status: ApplicationStatusOverview) -> str:
    """Return the last line of what Ray says: the error itself, below its traceback."""
    said = [each.message for each in status.deployments.values() if each.message]
    lines = "\n".join([*said, status.message]).strip().splitlines()
    errors = [line.strip() for line in lines if "Error" in line or "InvalidSetting" in line]
    return errors[-1] if errors else (lines[-1] if lines else "Ray gives no reason")
