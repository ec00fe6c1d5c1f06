"""The workers that there are: who starts, serves, drains, is gone; and what that costs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from stafette.kvtransfer.events import EventBatch
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.config import MODEL, TwinConfig
from stafette.platform.twin.tiers import TierTally
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec
from stafette.router.load import LoadReport
from stafette.router.request import WorkerSpec
from stafette.router.router import KvRouter
from stafette.workers.mocker.agenda import Appointment
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.core import Mocker, OnStretch
from stafette.workers.mocker.virtual import OnDeltas, VirtualCluster, VirtualTime
from stafette.workers.service.standing import Role

State = Literal["starting", "ready", "draining", "gone"]
_LOOK_S = 0.05  # between two looks whether a worker that drains is empty


@dataclass(slots=True, eq=False)
class Replica:
    name: str
    pool: str
    role: Role
    asked_s: float
    state: State = "starting"
    ready_s: float | None = None
    gone_s: float | None = None
    worker: Mocker | None = None  # while it lives
    start: Appointment | None = None

    def lived_s(self, now: float) -> float:
        """Return for how long it has been paid for."""
        return (now if self.gone_s is None else self.gone_s) - self.asked_s


@dataclass(slots=True)
class Pool:
    name: str
    target: int
    start_s: float
    gpus: float
    cost_per_hour: float
    num_made: int = 0
    changes: int = 0  # of the target, after the beginning


class Fleet:
    """`on_change` is told when a worker came, went or drains; `legs_of` how many need one."""

    def __init__(
        self, config: TwinConfig, time: VirtualTime, router: KvRouter, hashers: Hashers
    ) -> None:
        self.replicas: dict[str, Replica] = {}  # those that are not gone
        self.gone: list[Replica] = []
        self.pools: dict[str, Pool] = {}
        self.tiers = TierTally(config.block_size)
        self.on_deltas: OnDeltas = lambda deltas: None
        self.on_stretch: OnStretch = lambda stretch: None
        self.on_change: Callable[[], None] = lambda: None
        self.on_drain: Callable[[str], None] = lambda name: None
        self.on_lost: Callable[[str], None] = lambda name: None
        self.legs_of: Callable[[str], int] = lambda name: 0
        self.cluster = VirtualCluster(time)
        self._config = config
        self._time = time
        self._router = router
        self._fingerprint = hashers.of(MODEL).fingerprint
        for name, pool in config.pools.items():
            limits = pool.limits
            self.pools[name] = Pool(
                name, pool.replicas, limits.startup_s, limits.gpus_per_replica, limits.cost_per_hour
            )

    def begin(self) -> None:
        """Let the replicas of the beginning be there, without any start."""
        for pool in self.pools.values():
            for _ in range(pool.target):
                self._ready(self._make(pool))

    # What a scaler may do

    def set_replicas(self, pool: str, count: int) -> None:
        """Want so many that start or serve: others are started, or go on to drain."""
        known = self._pool(pool)
        if count < 0:
            raise InvalidSetting(f"replicas of {pool}", count, "must be at least 0")
        known.changes += count != known.target
        known.target = count
        living = [one for one in self.of(pool) if one.state in ("starting", "ready")]
        for _ in range(count - len(living)):
            self._start(self._make(known))
        for one in sorted(living, key=self._worth)[: max(0, len(living) - count)]:
            self.release(one.name)

    def release(self, name: str) -> None:
        """Let a worker go when what it has under way is elsewhere, or done."""
        replica = self._replica(name)
        if replica.state == "starting":
            if replica.start is not None:
                replica.start.cancel()
            self._gone(replica)
        elif replica.state == "ready":
            replica.state = "draining"
            self._router.set_state(name, draining=True)
            self.on_drain(name)
            self._look(replica)
            self.on_change()

    def set_role(self, name: str, role: Role) -> None:
        """What is under way stays."""
        replica = self._replica(name)
        if replica.role != role:
            replica.role = role
            if replica.ready_s is not None:
                self._router.set_role(name, role)
                self.on_change()

    # What may go wrong

    def kill(self, whom: str, noticed_s: float = 0.0) -> None:
        """End a worker at once; its pool starts another one, as a deployment's controller does."""
        replica = self.find(whom)
        if replica is None or replica.worker is None:
            return
        self._end(replica.name, replica.worker)
        replica.worker = None
        if noticed_s:
            self._time.at(self._time.now + noticed_s, lambda: self._note_loss(replica))
        else:
            self._note_loss(replica)

    def slow(self, whom: str, factor: float, for_s: float | None) -> None:
        replica = self.find(whom)
        if replica is None or replica.worker is None:
            return
        worker = replica.worker
        worker.set_pace(factor)
        if for_s is not None:
            self._time.at(self._time.now + for_s, lambda: worker.set_pace(1.0))

    def set_start(self, start_s: float, pool: str | None) -> None:
        for known in self.pools.values():
            if pool in (None, known.name):
                known.start_s = start_s

    # What it tells

    def of(self, pool: str) -> list[Replica]:
        return [one for one in self.replicas.values() if one.pool == pool]

    def find(self, whom: str) -> Replica | None:
        """Return a worker by its name, or the first that serves in a pool."""
        serving = (one for one in self.of(whom) if one.worker is not None)
        return self.replicas.get(whom) or next(serving, None)

    @property
    def draining(self) -> list[str]:
        """Return who is there, but takes nothing new."""
        return [o.name for o in self.replicas.values() if o.state == "draining" and o.worker]

    def counts(self, pool: str) -> dict[str, int]:
        """Return how many there are by state."""
        found = {"starting": 0, "ready": 0, "draining": 0}
        for one in self.of(pool):
            found[one.state] += 1
        return found

    def all_replicas(self) -> Iterator[Replica]:
        yield from self.gone
        yield from self.replicas.values()

    def gpu_seconds(self, now: float) -> dict[str, float]:
        """Return replicas x GPUs x time by pool, with those that start and drain."""
        found = dict.fromkeys(self.pools, 0.0)
        for one in self.all_replicas():
            found[one.pool] += one.lived_s(now) * self.pools[one.pool].gpus
        return found

    def cost(self, now: float) -> float:
        return sum(
            one.lived_s(now) / 3_600 * self.pools[one.pool].cost_per_hour
            for one in self.all_replicas()
        )

    def settle(self) -> None:
        """Let all be told that has happened by now."""
        for one in self.replicas.values():
            if one.worker is not None:
                one.worker.settle()

    def beat(self) -> None:
        """Let every worker report its load to the router."""
        for one in self.replicas.values():
            if one.worker is not None and one.ready_s is not None:
                found = one.worker.stats().scheduler
                self._router.report_load(
                    one.name,
                    LoadReport(
                        self._time.now,
                        found.num_queued_tokens,
                        found.num_running,
                        found.num_blocks_used,
                    ),
                )

    def close(self) -> None:
        """The run is over: count what the tiers of those that are left have done."""
        for one in self.replicas.values():
            if one.worker is not None:
                self.tiers.add(one.worker, living=True)
                one.worker.end_tiers()

    # The life of a replica

    def _make(self, pool: Pool) -> Replica:
        pool.num_made += 1
        name = f"{pool.name}-{pool.num_made}"
        replica = Replica(name, pool.name, self._config.role(pool.name), self._time.now)
        self.replicas[name] = replica
        return replica

    def _start(self, replica: Replica) -> None:
        start_s = self.pools[replica.pool].start_s
        replica.start = self._time.at(self._time.now + start_s, lambda: self._ready(replica))

    def _ready(self, replica: Replica) -> None:
        replica.state, replica.ready_s = "ready", self._time.now
        config = self._config.worker(replica.pool, replica.name)
        replica.worker = self.cluster.add(config, self.on_deltas, self.on_stretch)
        replica.worker.on_kv_events = self._on_events
        self._router.register(self._spec(config, replica.role))
        self.on_change()

    def _spec(self, config: MockerConfig, role: Role) -> WorkerSpec:
        cache = CacheSpec(
            target=config.name,
            block_size=self._config.block_size,
            model=MODEL,
            fingerprint=self._fingerprint,
        )
        return WorkerSpec(
            cache=cache,
            role=role,
            worker_class=config.worker_class,
            host="one",
            total_blocks=config.num_blocks,
            block_bytes=config.block_bytes,
        )

    def _on_events(self, batch: EventBatch) -> None:
        at_s = self._time.now + self._config.news_s
        self._time.at(at_s, lambda: self._router.index.on_batch(batch))

    def _look(self, replica: Replica) -> None:
        """Let a worker that drains be gone as soon as nobody needs it."""
        worker = replica.worker
        if replica.state != "draining" or worker is None:
            return
        busy = worker.has_work or worker.exports.counters.num_pinned > 0
        if busy or self.legs_of(replica.name):
            self._time.at(self._time.now + _LOOK_S, lambda: self._look(replica))
            return
        self._end(replica.name, worker)
        self._router.unregister(replica.name)
        self._gone(replica)

    def _note_loss(self, replica: Replica) -> None:
        """Frontends learn of it, and a controller starts another one in its place."""
        self._router.unregister(replica.name)
        was_wanted = replica.state == "ready"
        self._gone(replica)
        self.on_lost(replica.name)
        pool = self.pools[replica.pool]
        if was_wanted:
            self._start(self._make(pool))

    def _end(self, name: str, worker: Mocker) -> None:
        """Let a process be over, at once, and its tiers with it."""
        self.cluster.kill(name)
        self.tiers.add(worker)
        worker.end_tiers()

    def _gone(self, replica: Replica) -> None:
        replica.state, replica.gone_s, replica.worker = "gone", self._time.now, None
        del self.replicas[replica.name]
        self.gone.append(replica)
        self.on_change()

    def _worth(self, replica: Replica) -> tuple[bool, int, float]:
        """Who comes first is let go first: those that start, those that are needed least."""
        return replica.state == "ready", self.legs_of(replica.name), -replica.asked_s

    def _pool(self, name: str) -> Pool:
        pool = self.pools.get(name)
        if pool is None:
            raise InvalidSetting("pool", name, f"does not exist; there are {', '.join(self.pools)}")
        return pool

    def _replica(self, name: str) -> Replica:
        replica = self.replicas.get(name)
        if replica is None:
            known = ", ".join(self.replicas) or "none"
            raise InvalidSetting("worker", name, f"does not exist; there are {known}")
        return replica
