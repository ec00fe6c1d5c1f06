"""The workers that live: connected, known to the router, introduced to each other."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.kvtransfer.strict import exact, octets, text, whole
from stafette.platform.serving.links import Links
from stafette.platform.serving.step_news import StepNews
from stafette.router.errors import RouterError
from stafette.router.index import CacheSpec
from stafette.router.load import LoadReport
from stafette.router.request import Role, WorkerSpec
from stafette.router.router import KvRouter
from stafette.workers.errors import RequestError
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.config import ServiceConfig

_log = logging.getLogger(__name__)

_MAX_TEXT_BYTES = 1_024
_MAX_METADATA_BYTES = 1 << 20
_U63_END = 1 << 63
_ROLES: Mapping[object, Role] = {"prefill": "prefill", "decode": "decode", "both": "both"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    service: ServiceConfig  # the way to the workers; its host and port mean nothing here
    introduce_timeout_s: float = 2.0


class WorkerFleet(Links):
    """Follows a set of addresses: each worker is kept connected as long as it is in the set."""

    def __init__(
        self, frontend: str, config: FleetConfig, router: KvRouter, events: EventSubscriber
    ) -> None:
        super().__init__(frontend, config.service)
        self.router = router
        self._config = config
        self._events = events
        self.on_drain: Callable[[str], None] = lambda name: None  # a worker has begun to
        self._draining: set[str] = set()
        self._introduced: set[tuple[int, int]] = set()  # epochs: who was told of whom
        self._steps = StepNews()

    @property
    def draining(self) -> frozenset[str]:
        """Return who is there, but takes nothing new."""
        return frozenset(name for name in self._draining if self._clients[name].lost is None)

    async def introduce(self, one: str, other: str) -> None:
        """Let two workers' agents know each other; WorkerLost when one of them is not there."""
        first, second = self.client(one), self.client(other)
        await asyncio.gather(self._tell(first, second), self._tell(second, first))

    async def _tell(self, one: WorkerClient, other: WorkerClient) -> None:
        pair = (one.epoch, other.epoch)
        if pair in self._introduced:
            return
        for metadata in agents_of(other).values():
            with suppress(RequestError):  # it knows a newer life of it already
                await one.ask("add_peer", metadata, self._config.introduce_timeout_s)
        self._introduced.add(pair)

    def agents(self, worker: str) -> tuple[str, ...]:
        """Return the names of a worker's agents: one of each host that it is spread over."""
        return tuple(agents_of(self.client(worker)))

    def _enter(self, name: str, client: WorkerClient) -> None:
        self.router.register(read_spec(name, client.description))
        self._follow_events(name, client.description)
        client.on_load = partial(self._look_at_load, name, client)
        client.on_load()

    def _follow_events(self, name: str, description: Mapping[str, object]) -> None:
        match description.get("events"):
            case [str(address), str(replay)]:
                self._events.add_worker(name, address, replay)
            case _:
                raise MalformedMessage("events", "[address, replay address]")

    def _leave(self, name: str, client: WorkerClient) -> None:
        """What was there is elsewhere from now on."""
        if name not in self._clients:
            self._draining.discard(name)
        self._events.remove_worker(name)
        with suppress(RouterError):
            self.router.unregister(name)
        self._introduced = {p for p in self._introduced if client.epoch not in p}
        self._steps.forget(client.epoch)

    def _look_at_load(self, name: str, client: WorkerClient) -> None:
        load = client.load
        if not load:
            return
        draining = bool(load.get("draining"))
        with suppress(RouterError, MalformedMessage):
            self.router.set_role(name, _role(load.get("role")))
            self.router.set_state(name, draining=draining)
            self.router.report_load(name, read_load(load, client.load_at))
            self.router.report_steps(name, self._steps.of(client.epoch, load))
        self._note_draining(name, draining)

    def _note_draining(self, name: str, draining: bool) -> None:
        before = name in self._draining
        if draining and not before:
            self._draining.add(name)
            _log.info("worker %s drains", name)
            self.on_drain(name)
        elif before and not draining:
            self._draining.discard(name)
            self.changed.set()


def agents_of(client: WorkerClient) -> Mapping[str, bytes]:
    """Return the metadata of a worker's agents by their names, its own first."""
    told = client.description
    found = {client.name: octets(told.get("agent"), "agent", _MAX_METADATA_BYTES)}
    for member in exact(told.get("members", []), "members", list):
        match member:
            case [name, metadata]:
                name = text(name, "member", _MAX_TEXT_BYTES)
                found[name] = octets(metadata, "member", _MAX_METADATA_BYTES)
            case _:
                raise MalformedMessage("members", "[name, metadata]")
    return found


def read_spec(name: str, description: Mapping[str, object]) -> WorkerSpec:
    """Return what the router is told of a worker that has described itself."""

    def number(key: str) -> int:
        return whole(description.get(key), key, _U63_END)

    def words(key: str) -> str:
        return text(description.get(key), key, _MAX_TEXT_BYTES)

    cache = CacheSpec(
        target=name,
        block_size=number("block_size"),
        model=words("model"),
        fingerprint=exact(description.get("fingerprint"), "fingerprint", bytes),
        capacity_blocks=number("num_blocks"),
    )
    return WorkerSpec(
        cache=cache,
        role=_role(description.get("role")),
        worker_class=words("class"),
        host=words("host"),
        total_blocks=number("num_blocks"),
        block_bytes=number("block_bytes"),
        loras=_loras(description),
    )


def read_load(load: Mapping[str, object], at: float) -> LoadReport:
    def number(key: str) -> int:
        return whole(load.get(key), key, _U63_END)

    return LoadReport(at, number("queued_tokens"), number("running"), number("used_blocks"))


def _loras(description: Mapping[str, object]) -> frozenset[str] | None:
    """Return the adapters that a worker has; None when it does not tell: it takes any."""
    if "loras" not in description:
        return None
    names = exact(description["loras"], "loras", list)
    return frozenset(text(name, "lora", _MAX_TEXT_BYTES) for name in names)


def _role(value: object) -> Role:
    role = _ROLES.get(value)
    if role is None:
        raise MalformedMessage("role", " | ".join(str(name) for name in _ROLES))
    return role
