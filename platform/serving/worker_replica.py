"""A worker as a replica of a Ray Serve deployment. No request passes through Ray: Serve places it,
keeps it alive, and tells frontends its address.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from ray import serve

from stafette.kvtransfer.directory.directory import Directory
from stafette.kvtransfer.tiers.config import TiersConfig
from stafette.platform import logs
from stafette.platform.config import Config
from stafette.platform.observability.node import NodePage
from stafette.platform.observability.tracing import open_tracing
from stafette.platform.observability.workers import WorkerMetrics
from stafette.platform.serving.assembly import node_page, service_config
from stafette.platform.serving.directory_discovery import open_workers_directory, publish_worker
from stafette.platform.serving.loop_thread import LoopThread
from stafette.platform.serving.node import node_host
from stafette.platform.serving.spread_worker import spread_ranks
from stafette.platform.serving.tier_folder import TierFolder
from stafette.platform.serving.worker_making import WorkerMaker
from stafette.workers.errors import EngineDead
from stafette.workers.garbage import settle
from stafette.workers.service.life import DrainConfig, leave
from stafette.workers.service.server import WorkerServer

_log = logging.getLogger(__name__)


class WorkerReplica:
    def __init__(self, config: Config, pool: str) -> None:
        self._config, self._pool = config, pool
        self._name = f"{pool}-{serve.get_replica_context().replica_id.unique_id}"
        logs.set_up(config.log_level, self._name)
        self._host = node_host(config)
        self._folder: TierFolder | None = None
        self._loop = LoopThread("stafette-worker")
        try:
            self._loop.submit(self._start()).result()
        except BaseException:
            self._loop.stop()
            raise

    def record_replica_metadata(self) -> Mapping[str, object]:
        """Return what frontends need to find this worker; Serve asks once, when it is ready."""
        return {"name": self._name, "address": self._server.address, "pool": self._pool}

    def check_health(self) -> None:
        if not self._worker.is_alive:
            raise EngineDead("engine", "dead", "this replica is to be replaced")
        if self._worker.retiring and not (self._server.num_requests or self._worker.num_pinned):
            raise EngineDead("worker", self._name, "was told to retire, and is empty")

    async def __del__(self) -> None:
        """Serve awaits this when it stops the replica, for as long as the pool's settings say."""
        await self._loop.run(self._end())
        self._loop.stop()

    async def _start(self) -> None:
        ranks = spread_ranks(self._config, self._pool, self._host)
        maker = WorkerMaker(self._config, self._pool, self._name, self._host, ranks)
        self._worker = await maker.make(self._tiers())
        self._tracing = open_tracing(self._config.tracing, self._name, self._pool)
        if self._tracing is not None:
            self._worker.imports.on_pulled = self._tracing.pulled
        self._server = await WorkerServer.start(
            self._worker, service_config(self._config, self._host), self._tracing
        )
        self._page = await self._count()
        self._directory = self._publish()
        settle()
        _log.info("worker %s serves at %s", self._name, self._server.address)

    async def _count(self) -> NodePage:
        """Tell what this worker counts, with the others of this node."""
        page = node_page(self._config, self._name, self._pool)
        page.process.add(WorkerMetrics(self._config.served_name, self._worker.measured).collect)
        await page.start()
        return page

    def _tiers(self) -> TiersConfig | None:
        """Give the disk tier a folder that no other worker of this host has."""
        tiers = self._config.tiers
        if tiers is None or tiers.disk is None:
            return tiers
        self._folder = TierFolder(tiers.disk.folder, self._pool)
        return replace(tiers, disk=replace(tiers.disk, folder=self._folder.path))

    def _publish(self) -> Directory | None:
        if self._config.discovery.backend != "etcd":
            return None
        directory = open_workers_directory(self._config.discovery)
        metadata = self._worker.describe()["agent"]
        assert isinstance(metadata, bytes)
        address, epoch = self._server.address, self._worker.epoch
        publish_worker(directory, self._name, epoch, address, metadata)
        return directory

    async def _end(self) -> None:
        """Take nothing new, let go what is under way, and give everything back."""
        if self._directory is not None:
            self._directory.close()
        timeout_s = self._config.pools[self._pool].drain_timeout_s
        await leave(self._worker, self._server, DrainConfig(deadline_s=timeout_s))
        await self._page.close()
        await self._server.stop()
        await self._worker.close()
        if self._tracing is not None:
            await self._tracing.close()
        if self._folder is not None:
            self._folder.close()
