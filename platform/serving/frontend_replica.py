"""A frontend as a replica of a Ray Serve deployment: the API on a listener of its own."""

import asyncio
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from stafette.platform import logs
from stafette.platform.config import Config, api_keys, api_settings
from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.server import Server, address, listen
from stafette.platform.observability.tracing import open_tracing
from stafette.platform.serving.assembly import (
    Front,
    fleet_metrics,
    make_front,
    node_page,
    service_config,
)
from stafette.platform.serving.desk import Desk
from stafette.platform.serving.discovering import discovery_of
from stafette.platform.serving.loop_thread import LoopThread
from stafette.platform.serving.membership import Membership
from stafette.platform.serving.node import node_host
from stafette.platform.serving.overview import overview
from stafette.platform.serving.planner_handle import PlannerHandle
from stafette.platform.serving.serve_ingress import Forwarder
from stafette.workers.garbage import settle
from stafette.workers.service.server import WorkerServer
from stafette.workers.weights.advised_sampling import advised_sampling

_log = logging.getLogger(__name__)

_ASK_S = 10.0  # for a worker to answer


class FrontendReplica:
    """Its loop runs in a thread of its own: nothing that Serve does delays a token."""

    def __init__(
        self,
        config: Config,
        *workers: DeploymentHandle[Any],
        planner: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._config = config
        self._planner = planner
        self._name = f"frontend-{serve.get_replica_context().replica_id.unique_id}"
        deployments = [handle.deployment_name for handle in workers]
        self._discovery = discovery_of(config.discovery, deployments)
        logs.set_up(config.log_level, self._name)
        self._host = node_host(config)
        self._loop = LoopThread("stafette-frontend")
        try:
            self._listener = self._listen()
            self._loop.submit(self._start()).result()
        except BaseException:
            self._loop.stop()
            raise

    def record_replica_metadata(self) -> Mapping[str, object]:
        """Return what other frontends, and the planner, need to find this one."""
        desk = {} if self._desk is None else {"address": self._desk.address}
        return {"name": self._name, "url": self.url(), "gossip": self._front.peers.address} | desk

    def url(self) -> str:
        return address(self._config.frontend, self._listener, self._host)

    async def workers(self) -> list[dict[str, Any]]:
        return await self._loop.run(self._overview())

    async def ask_worker(self, name: str, operation: str, payload: object = None) -> object:
        """Ask a worker what it must be asked by somebody who has the cluster's token."""
        return await self._loop.run(self._ask(name, operation, payload))

    def __serve_build_asgi_app__(self) -> Forwarder:
        """Return what Serve's proxies talk to, where they are the ingress."""
        return Forwarder(self._app, self._loop)

    def check_health(self) -> None:
        if self._serving.done():
            raise RuntimeError(f"the listener of {self._name} has ended")

    async def __del__(self) -> None:
        await self._loop.run(self._end())
        self._loop.stop()

    def _listen(self) -> socket.socket:
        own = self._config.frontend
        if own.ingress == "serve":  # whose proxies have the port
            return listen(replace(api_settings(own), host="127.0.0.1", port=0))
        return listen(own, shared=True)

    async def _start(self) -> None:
        """Return when clients can connect; whether workers are there, /ready tells."""
        self._front: Front = make_front(self._config, self._name, self._host)
        membership = Membership(self._front.fleet)
        self._discovery.start(membership, self._front.peers)
        self._following = asyncio.create_task(membership.let_go())
        self._desk = await self._open_desk()
        served = await self._served()
        settings = api_settings(self._config.frontend)
        self._page = node_page(self._config, self._name, "frontend")
        self._page.process.add(fleet_metrics(self._front).collect)
        keys = api_keys(settings)
        self._app = Frontend(served, self._front.dispatcher, settings, keys, self._page)
        if self._planner is not None:
            self._app.show_planner(PlannerHandle(self._planner))
        self._tracing = open_tracing(self._config.tracing, self._name, "frontend")
        if self._tracing is not None:
            self._app.trace(self._tracing)
        await self._page.start()
        self._server = Server(self._app)
        started = asyncio.Event()
        self._serving = asyncio.create_task(self._server.run(self._listener, started.set))
        await started.wait()
        settle()

    async def _open_desk(self) -> WorkerServer | None:
        """Let the planner see what is asked for, where there is one."""
        if self._planner is None:
            return None
        desk = Desk(self._name, self._front.dispatcher)
        return await WorkerServer.start(desk, service_config(self._config, self._host))

    async def _served(self) -> Served:
        """Say what is served; how long prompts may be is known from the first worker, or set."""
        config, front = self._config, self._front
        length = config.engine.given.get("max_model_len")
        while not isinstance(length, int):
            front.fleet.changed.clear()
            lengths = [c.description.get("max_model_len") for c in front.fleet.clients.values()]
            length = min((n for n in lengths if isinstance(n, int)), default=None)
            if length is None:
                await front.fleet.changed.wait()
        api = api_settings(config.frontend)
        advice = advised_sampling(api.generation_config, config.model)
        return Served.of(api, config.model, front.tokenizer, length, advice)

    async def _overview(self) -> list[dict[str, Any]]:
        return overview(self._front.fleet)

    async def _ask(self, name: str, operation: str, payload: object) -> object:
        return await self._front.fleet.client(name).ask(operation, payload, _ASK_S)

    async def _end(self) -> None:
        self._server.stop()
        await self._serving
        await self._page.close()
        self._following.cancel()
        with suppress(asyncio.CancelledError):
            await self._following
        await self._discovery.close()
        if self._desk is not None:
            await self._desk.stop()
        await self._front.close()
        if self._tracing is not None:
            await self._tracing.close()
