"""A worker's life as a process: it serves, is told to leave, is emptied by the frontends, ends."""

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from stafette.workers.errors import ConfigError
from stafette.workers.service.server import WorkerServer
from stafette.workers.service.standing import Standing

_log = logging.getLogger(__name__)

_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainConfig:
    deadline_s: float = 60.0  # what is still here then is cut off: it goes on elsewhere, recomputed
    quiet_s: float = 0.5  # without a request or a reader, after which nobody is on the way here

    def __post_init__(self) -> None:
        for name in ("deadline_s", "quiet_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"drain.{name}", getattr(self, name), "must be at least 0")


async def live(worker: Standing, server: WorkerServer, config: DrainConfig) -> bool:
    """Serve until told to leave, by `drain` or SIGTERM; end; return whether nothing was cut off.

    A second SIGTERM ends it at once.
    """
    now = asyncio.Event()
    with _sigterm(worker, now):
        empty = False
        while not worker.draining:  # which may be taken back
            await worker.told_to_leave()
            empty = await leave(worker, server, config, now)
    await server.stop()
    await worker.close()
    return empty


async def leave(
    worker: Standing,
    server: WorkerServer,
    config: DrainConfig,
    now: asyncio.Event | None = None,
) -> bool:
    """Drain; wait until the frontends have moved everything away. False at the deadline."""
    worker.drain()
    _log.info("worker %s drains: %d requests are here", worker.name, server.num_requests)
    emptied = asyncio.create_task(_empty(worker, server, config))
    hurry = asyncio.create_task((now or asyncio.Event()).wait())
    try:
        await asyncio.wait((emptied, hurry), return_when=asyncio.FIRST_COMPLETED)
    finally:
        hurry.cancel()
        emptied.cancel()
        with suppress(asyncio.CancelledError):
            await emptied
    empty = not emptied.cancelled() and emptied.result()
    _log.info("worker %s %s", worker.name, "is empty" if empty else "cuts off what is left")
    return empty


async def _empty(worker: Standing, server: WorkerServer, config: DrainConfig) -> bool:
    deadline = time.monotonic() + config.deadline_s
    busy_at = time.monotonic()
    while True:
        now = time.monotonic()
        if server.num_requests:
            busy_at = now
        elif worker.num_pinned:
            busy_at = now
            worker.relieve()  # of readers that have died
        elif now - busy_at >= config.quiet_s:
            return True
        if now >= deadline or not worker.draining:
            return False
        await asyncio.sleep(_POLL_S)


@contextmanager
def _sigterm(worker: Standing, now: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def told() -> None:
        if worker.draining:
            now.set()
        worker.drain()

    loop.add_signal_handler(signal.SIGTERM, told)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
