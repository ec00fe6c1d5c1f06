"""Lets pins outlive the planner's process: frontends keep them for its next life."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import each, number
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.pins import Pins
from stafette.platform.planner.running.merging import Life
from stafette.platform.serving.links import Links
from stafette.workers.errors import EngineError

_log = logging.getLogger(__name__)

_ANSWER_S = 2.0

Kept = tuple[str, int, float]  # pool, replicas, seconds left


class PinKeeper:
    def __init__(self, pins: Pins, frontends: Links, clock: Callable[[], float]) -> None:
        self._pins = pins
        self._frontends = frontends
        self._clock = clock
        self._learned = asyncio.Event()  # what an earlier life has left
        self._version = 0
        self._told: dict[Life, int] = {}

    def changed(self) -> None:
        """Somebody has pinned a pool, or let it go."""
        self._version += 1

    async def learned(self) -> None:
        """Wait, not for ever, until what an earlier life has left is known: it is older."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                await self._learned.wait()

    async def look(self) -> None:
        """Ask for what was left, once; from then on tell what changes, and whoever is new."""
        clients = list(self._frontends.clients.values())
        if not self._learned.is_set() and clients:
            for client in clients:
                if await self._adopt(client.name):
                    break
            self._learned.set()
            self._version += 1
        lives = {(client.name, client.epoch): client.name for client in clients}
        told = {life: version for life, version in self._told.items() if life in lives}
        self._told = told
        for life, name in lives.items():
            if told.get(life, 0) != self._version and await self._tell(name):
                told[life] = self._version

    async def _adopt(self, name: str) -> bool:
        """Take what a frontend has kept; return whether it had something."""
        try:
            told = read_kept(await self._frontends.client(name).ask("pins", None, _ANSWER_S))
        except (EngineError, MalformedMessage) as error:
            _log.warning("%s does not tell what is pinned: %s", name, error)
            return False
        if told is None:
            return False
        for pool, replicas, left_s in told:
            try:
                if left_s > 0:
                    self._pins.pin(pool, replicas, self._clock() + left_s)
            except InvalidSetting as error:
                _log.warning("a pin is dropped: %s", error)
        return True

    async def _tell(self, name: str) -> bool:
        now = self._clock()
        pins = self._pins.active(now).values()
        kept = [[pin.pool, pin.replicas, pin.until - now] for pin in pins]
        try:
            await self._frontends.client(name).ask("keep_pins", kept, _ANSWER_S)
        except EngineError as error:
            _log.info("%s keeps no pins: %s", name, error)
            return False
        return True


def read_kept(answer: object) -> tuple[Kept, ...] | None:
    """Return what a frontend has kept, less the time since; None: nothing was ever left there."""
    match answer:
        case None:
            return None
        case [age, kept]:
            age_s = number(age, "age")
            found = each(kept, "pins", _read_pin)
            return tuple((pool, replicas, left_s - age_s) for pool, replicas, left_s in found)
    raise MalformedMessage("pins", "[seconds ago, pins]")


def _read_pin(row: object) -> Kept:
    match row:
        case [str(pool), int(replicas), float(left_s)]:
            return pool, replicas, left_s
    raise MalformedMessage("pin", "[pool, replicas, seconds left]")
