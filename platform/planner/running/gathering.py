"""Makes an observation of a running fleet: of what its frontends, its workers and Serve tell."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import whole
from stafette.platform.planner.observation import Observation, PoolState, WorkerState
from stafette.platform.planner.running.merging import Life, Merged
from stafette.platform.serving.links import Links
from stafette.platform.serving.step_news import StepNews
from stafette.workers.errors import EngineError
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.standing import ROLES, Role

_log = logging.getLogger(__name__)

_ANSWER_S = 2.0  # for a frontend or Serve to answer
_U63_END = 1 << 63
_ROLES: Mapping[object, Role] = {role: role for role in ROLES}


class Room(NamedTuple):
    kv_tokens: int
    max_num_seqs: int


class Unseen(Exception):
    """There is no whole picture of this moment: it says what is missing."""


class Sizes(Protocol):
    """Whoever runs the replicas."""

    async def targets(self) -> Mapping[str, int]:
        """Return how many each pool is to have; Unseen when that is not to be learned."""

    async def resize(self, pool: str, replicas: int) -> None:
        """Ask for another number; Unseen or a ValueError says why not."""


class Gatherer:
    """Each `observe` covers the time since the last one that came about."""

    def __init__(
        self,
        frontends: Links,
        workers: Links,
        sizes: Sizes,
        pools: Collection[str],
        clock: Callable[[], float],
        leaving: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`leaving` tells who was asked to go by whoever carries plans out."""
        self._leaving = leaving
        self._frontends = frontends
        self._sizes = sizes
        self._pools = pools
        self._clock = clock
        self._began = self._looked = clock()
        self._merged = Merged()
        self._seen = WorkersSeen(workers, pools)

    async def observe(self) -> Observation:
        """Ask everybody at once; Unseen when somebody does not answer."""
        targets, failure = await asyncio.gather(
            self._sizes.targets(), self._ask_frontends(), return_exceptions=True
        )
        for each in (targets, failure):
            if isinstance(each, BaseException):
                raise each
        assert isinstance(targets, Mapping)
        now, window = self._clock(), self._merged.window()
        since, self._looked = self._looked, now
        workers, leaving = self._seen.states(now), self._leaving()
        return Observation(
            at=now,
            window_s=now - since,
            arrivals=window.arrivals,
            started=window.started,
            finished=window.finished,
            waiting=self._merged.waiting,
            workers=workers,
            pools={
                name: pool_state(targets[name], [w for w in workers if w.pool == name], leaving)
                for name in self._pools
            },
        )

    def rooms(self) -> Mapping[str, Room]:
        """Return what a worker of each pool holds, where there is one to tell it."""
        return self._seen.rooms()

    async def _ask_frontends(self) -> None:
        clients = list(self._frontends.clients.values())
        self._merged.keep([_life(client) for client in clients])
        asked = [self._ask(client) for client in clients]
        # All are waited for: one that is asked twice at a time would tell the same twice.
        for failure in await asyncio.gather(*asked, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _ask(self, client: WorkerClient) -> None:
        life = _life(client)
        age_s = client.description.get("age_s")
        lived_s = self._clock() - self._began
        self._merged.meet(life, isinstance(age_s, float) and age_s <= lived_s)
        try:
            answer = await client.ask("traffic", self._merged.question(life), _ANSWER_S)
            self._merged.take(life, answer)
        except (EngineError, MalformedMessage) as error:
            if client.lost is not None:
                return  # it has ended, and so have its requests
            raise Unseen(f"{client.name} does not tell its requests: {error}") from error


class WorkersSeen:
    """What the workers said with their latest beats."""

    def __init__(self, workers: Links, pools: Collection[str]) -> None:
        self._workers = workers
        self._pools = pools
        self._steps = StepNews()
        self._since: dict[int, float] = {}  # by epoch

    def states(self, now: float) -> list[WorkerState]:
        clients = [c for c in self._workers.clients.values() if pool_of(c.name) in self._pools]
        for epoch in self._since.keys() - {client.epoch for client in clients}:
            del self._since[epoch]
            self._steps.forget(epoch)
        found = []
        for client in clients:
            since = self._since.setdefault(client.epoch, now)
            try:
                if client.load:
                    found.append(self._state(client, now - since))
            except MalformedMessage as error:
                _log.error("what %s says of its load is not understood: %s", client.name, error)
        return found

    def rooms(self) -> Mapping[str, Room]:
        found = {}
        for client in self._workers.clients.values():
            told = client.description
            match told.get("num_blocks"), told.get("block_size"), told.get("max_num_seqs"):
                case int(blocks), int(size), int(seqs) if min(blocks, size, seqs) > 0:
                    found[pool_of(client.name)] = Room(blocks * size, seqs)
        return {pool: room for pool, room in found.items() if pool in self._pools}

    def _state(self, client: WorkerClient, age_s: float) -> WorkerState:
        load = client.load

        def count(key: str) -> int:
            return whole(load.get(key), key, _U63_END)

        role = _ROLES.get(load.get("role"))
        if role is None:
            raise MalformedMessage("role", " | ".join(ROLES))
        block_size = whole(client.description.get("block_size"), "block_size", _U63_END)
        return WorkerState(
            name=client.name,
            pool=pool_of(client.name),
            role=role,
            draining=bool(load.get("draining")),
            age_s=age_s,
            running=count("running"),
            waiting=count("waiting"),
            queued_tokens=count("queued_tokens"),
            used_kv_tokens=count("used_blocks") * block_size,
            steps=self._steps.of(client.epoch, load),
        )


def pool_of(worker: str) -> str:
    return worker.partition("-")[0]


def pool_state(asked: int, workers: Sequence[WorkerState], leaving: Collection[str]) -> PoolState:
    """Return a pool's numbers: nobody is to come for those who were asked to leave."""
    ready = sum(not worker.draining for worker in workers)
    going = sum(worker.name in leaving for worker in workers)
    target = max(asked - going, 0)
    return PoolState(target=target, ready=ready, starting=max(0, target - ready))


def _life(client: WorkerClient) -> Life:
    return client.name, client.epoch
