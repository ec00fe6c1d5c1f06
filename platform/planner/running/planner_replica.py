"""The planner as a replica of a Ray Serve deployment. No request passes it: without it the fleet
serves on, in the size that it has.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ray import serve

from stafette.platform import logs
from stafette.platform.config import Config
from stafette.platform.observability.planning import PlannerMetrics
from stafette.platform.planner.planner import Planner
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.platform.planner.running.fleet_scaler import FleetScaler
from stafette.platform.planner.running.frontends import FrontendLinks
from stafette.platform.planner.running.gathering import Gatherer
from stafette.platform.planner.running.pin_keeping import PinKeeper
from stafette.platform.planner.running.serve_sizes import ServeSizes, serve_sizes
from stafette.platform.planner.running.service import PlannerService
from stafette.platform.planner.scaler import DryRun, Scaler
from stafette.platform.serving.assembly import node_page
from stafette.platform.serving.discovering import discovery_of
from stafette.platform.serving.links import Links
from stafette.platform.serving.loop_thread import LoopThread
from stafette.platform.serving.membership import Membership
from stafette.platform.serving.serve_discovery import ServeDiscovery

_NAME = "planner"


class PlannerReplica:
    def __init__(
        self,
        config: Config,
        specs: Mapping[str, PoolSpec],
        deployments: Mapping[str, str],
        frontend: str,
    ) -> None:
        """`deployments` names those of the pools, `frontend` that of the frontends."""
        self._config, self._specs = config, specs
        self._deployments, self._frontend = deployments, frontend
        logs.set_up(config.log_level, _NAME)
        self._loop = LoopThread("stafette-planner")
        try:
            self._loop.submit(self._start()).result()
        except BaseException:
            self._loop.stop()
            raise

    async def overview(self, last: int) -> dict[str, Any]:
        return await self._loop.run(self._overview(last))

    async def pin(self, pool: str, replicas: int, for_s: float) -> None:
        await self._loop.run(self._service.pin(pool, replicas, for_s))

    async def unpin(self, pool: str) -> bool:
        return await self._loop.run(self._service.unpin(pool))

    def check_health(self) -> None:
        for task in self._tasks:
            if task.done():
                reason = "it was cancelled" if task.cancelled() else repr(task.exception())
                raise RuntimeError(f"the planner has ended: {reason}")

    async def __del__(self) -> None:
        await self._loop.run(self._end())
        self._loop.stop()

    async def _start(self) -> None:
        config, application = self._config, serve.get_replica_context().app_name
        service = config.service.make(token=config.token)
        frontends, workers = FrontendLinks(service), Links(_NAME, service)
        self._links = (frontends, workers)
        members = Membership(frontends), Membership(workers)
        self._discoveries = (
            ServeDiscovery([self._frontend]),
            discovery_of(config.discovery, list(self._deployments.values())),
        )
        for discovery, membership in zip(self._discoveries, members, strict=True):
            discovery.start(membership, None)
        planner = Planner(config.planner, self._specs)
        sizes = serve_sizes(config.planner.scaler, application, self._deployments)
        self._scaler = self._make_scaler(sizes, workers)
        pools, leaving = list(self._specs), self._scaler.leaving
        gatherer = Gatherer(frontends, workers, sizes, pools, time.monotonic, leaving)
        keeper = PinKeeper(planner.pins, frontends, time.monotonic)
        self._service = PlannerService(planner, gatherer, self._scaler, keeper, time.monotonic)
        frontends.on_waiting = self._service.wake
        self._page = node_page(config, _NAME, _NAME)
        self._page.process.add(PlannerMetrics(self._service).collect)
        await self._page.start()
        running = [each.let_go() for each in members]
        self._tasks = [asyncio.create_task(each) for each in (*running, self._service.run())]

    def _make_scaler(self, sizes: ServeSizes, workers: Links) -> Scaler:
        if self._config.planner.mode == "dry_run":
            return DryRun()
        drain_s = {name: pool.drain_timeout_s for name, pool in self._config.pools.items()}
        return FleetScaler(sizes, workers, drain_s, time.monotonic)

    async def _overview(self, last: int) -> dict[str, Any]:
        return self._service.overview(last)

    async def _end(self) -> None:
        await self._page.close()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
        if isinstance(self._scaler, FleetScaler):
            await self._scaler.close()
        for discovery in self._discoveries:
            await discovery.close()
        for links in self._links:
            await links.close()
