"""Learns from Ray Serve which workers there are: its controller pushes their replicas' metadata.

No public call of Ray's does that. What is imported here is what its own LLM router uses (2.60);
nothing else of ours relies on private names.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray import serve
from ray.serve._private.common import DeploymentID, DeploymentTargetInfo
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace
from ray.serve.context import _get_global_client

from stafette.platform.serving.frontend_peers import FrontendPeers
from stafette.platform.serving.membership import Membership

_log = logging.getLogger(__name__)


class ServeDiscovery:
    """Follows deployments of this process's own application: the workers', and its own."""

    def __init__(self, deployments: list[str]) -> None:
        own = serve.get_replica_context()
        self._app, self._own = own.app_name, own.deployment
        self._deployments = deployments
        self._addresses: dict[str, dict[str, str]] = {}  # by deployment
        self._client: LongPollClient | None = None

    def start(self, membership: Membership, frontends: FrontendPeers | None) -> None:
        key = LongPollNamespace.DEPLOYMENT_TARGETS
        listeners: dict[Any, Callable[[Any], None]] = {
            (key, DeploymentID(name, self._app)): partial(self._take, membership, name)
            for name in self._deployments
        }
        if frontends is not None:
            own = (key, DeploymentID(self._own, self._app))
            listeners[own] = lambda info: frontends.meet(_gossip_addresses(info))
        client = _get_global_client()
        assert client is not None, "a replica has a controller"
        loop, who = asyncio.get_running_loop(), f"stafette-{self._app}"
        self._client = LongPollClient(client._controller, listeners, loop, who)

    async def close(self) -> None:
        if self._client is not None:
            self._client.stop()

    def _take(self, membership: Membership, name: str, info: DeploymentTargetInfo) -> None:
        replicas = [replica.replica_metadata for replica in info.running_replicas]
        found = dict(pair for each in replicas if (pair := _address(each)) is not None)
        if found != self._addresses.get(name):
            _log.info("%s: %s", name, ", ".join(sorted(found)) or "no worker")
        self._addresses[name] = found
        membership.take({n: a for each in self._addresses.values() for n, a in each.items()})


def _gossip_addresses(info: DeploymentTargetInfo) -> list[str]:
    told = [(replica.replica_metadata or {}).get("gossip") for replica in info.running_replicas]
    return [address for address in told if isinstance(address, str)]


def _address(metadata: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """Return a worker's name and address; None for a replica that has not said them."""
    name, address = (metadata or {}).get("name"), (metadata or {}).get("address")
    return (name, address) if isinstance(name, str) and isinstance(address, str) else None
