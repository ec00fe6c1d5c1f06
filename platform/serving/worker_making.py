"""Makes the workers of a fleet from the one tree of settings: engines, and those that mock one.

Engines are imported where one is made: a process of mock workers starts without torch.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from stafette.kvtransfer.event_stream.publisher import PublisherConfig
from stafette.kvtransfer.tiers.config import TiersConfig
from stafette.platform.config import Config
from stafette.platform.serving.assembly import cache_key
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.worker import MockWorker
from stafette.workers.service.standing import Standing

if TYPE_CHECKING:
    from stafette.workers.runner.rank_process import RankSource
    from stafette.workers.service.engine_worker import WorkerConfig


class WorkerMaker:
    """Makes one worker of a pool, which listens on `host`."""

    def __init__(
        self, config: Config, pool: str, name: str, host: str, ranks: "RankSource | None" = None
    ) -> None:
        """`ranks` starts those of tensor parallelism; None: on this host."""
        self._config = config
        self._ranks = ranks
        self._pool = pool
        self._name = name
        self._host = host

    async def make(self, tiers: TiersConfig | None) -> Standing:
        speed = self._config.pools[self._pool].mock
        if speed is not None:
            return self._mock(speed)
        from stafette.workers.service.engine_worker import EngineWorker

        return await EngineWorker.start(self._engine_worker(tiers))

    def _engine_worker(self, tiers: TiersConfig | None) -> "WorkerConfig":
        from stafette.workers.service.engine_worker import WorkerConfig

        config = self._config
        agent = config.transfer.make(
            name=self._name, token=config.token, host=self._host, compatibility=config.model
        )
        return WorkerConfig(
            name=self._name,
            role=config.role(self._pool),
            engine=self._engine(),
            agent=agent,
            p2p=config.p2p,
            events=self._events(),
            worker_class=self._worker_class,
            loras=config.lora_modules,
            tiers=tiers,
            ranks=self._ranks,
        )

    def _mock(self, speed: Profile) -> Standing:
        config = self._config
        agent = config.transfer.make(name=self._name, token=config.token, host=self._host)
        told = MockerConfig(
            name=self._name,
            role=config.role(self._pool),
            engine=self._engine(),
            profile=speed,
            p2p=config.p2p,
            events=self._events(),
            worker_class=self._worker_class,
        )
        return _LoneMock(told, MockHost(agent))

    @property
    def _worker_class(self) -> str:
        return self._config.pools[self._pool].worker_class or self._pool

    def _engine(self) -> EngineConfig:
        flags = self._config.engine_flags(self._pool)
        return replace(flags, prefix_cache_key=cache_key(self._config))

    def _events(self) -> PublisherConfig:
        address = f"tcp://{self._host}:*"
        return PublisherConfig(address=address, replay_address=address, key=self._config.token)


class _LoneMock(MockWorker):
    """The only one of its process: what mock workers share there is its own."""

    async def close(self) -> None:
        await super().close()
        self._host.close()
