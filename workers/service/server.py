"""A worker's listener: one long stream for each frontend that proves itself."""

import asyncio
import logging
from contextlib import suppress

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import pack
from stafette.workers.errors import ConfigError
from stafette.workers.service.auth import Challenge, Greeting
from stafette.workers.service.beats import Silence
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.outbox import Overflow
from stafette.workers.service.serving import Served
from stafette.workers.service.session import Session
from stafette.workers.service.streams.registry import stream_of
from stafette.workers.service.streams.wire import Listener, StreamEnded, Wire
from stafette.workers.tracing import WorkerTracer

_log = logging.getLogger(__name__)

_FAULTS = (MalformedMessage, Overflow, PermissionError, Silence, TimeoutError)


class WorkerServer:
    """Make it with `await WorkerServer.start(...)`, end it with `stop`."""

    def __init__(
        self, served: Served, config: ServiceConfig, tracer: WorkerTracer | None = None
    ) -> None:
        self._served = served
        self._tracer = tracer
        self._config = config
        self._sessions: set[Session] = set()
        self._listener: Listener | None = None
        self.refused = 0  # streams that proved nothing, or broke the format
        self.address = ""
        served.on_change = self._announce

    @classmethod
    async def start(
        cls, served: Served, config: ServiceConfig, tracer: WorkerTracer | None = None
    ) -> "WorkerServer":
        server = cls(served, config, tracer)
        port = await server._listen()
        server.address = f"{config.advertised_host or config.host}:{port}"
        return server

    @property
    def num_requests(self) -> int:
        sessions = tuple(self._sessions)  # other threads may ask
        return sum(session.num_requests for session in sessions)

    async def finish(self, timeout_s: float) -> bool:
        """Wait until nothing is under way; False when that takes longer."""
        sessions = [session.finish() for session in self._sessions]
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*sessions)
        return not self.num_requests

    async def stop(self) -> None:
        """End every stream; what is still under way is aborted. Safe to call twice."""
        if self._listener is not None:
            await self._listener.close()

    async def _listen(self) -> int:
        config = self._config
        try:
            self._listener = await stream_of(config).listen(config, self._stream)
        except OSError as error:
            remedy = f"must be a free address of this host ({error})"
            where = f"{config.host}:{config.port}"
            raise ConfigError("service.host, port", where, remedy) from None
        return self._listener.port

    def _announce(self) -> None:
        for session in self._sessions:
            session.announce()

    async def _stream(self, wire: Wire) -> None:
        """Serve one frontend as long as it lives, and tell it why when we end it."""
        reason = ""
        try:
            async with asyncio.timeout(self._config.handshake_timeout_s):
                frontend = await self._admit(wire)
            await self._serve(frontend, wire)
        except _FAULTS as error:
            self.refused += 1
            reason = f"{type(error).__name__}: {error}"
            _log.warning("ended the stream of %s: %s", wire.peer, reason)
        except (ConnectionError, StreamEnded):
            pass  # it has gone, in whatever way
        finally:
            await wire.close(reason)

    async def _admit(self, wire: Wire) -> str:
        """Return who proved that it belongs to our cluster."""
        greeting = Greeting.read(await _next(wire))
        token, served = self._config.token, self._served
        challenge = Challenge.make(token, greeting, served.name, served.epoch)
        await wire.write(challenge.pack())
        if not challenge.is_answered(token, greeting, await _next(wire)):
            raise PermissionError("it did not prove that it knows the cluster's token")
        wire.max_bytes = self._config.max_message_bytes
        await wire.write(pack([dict(served.describe())]))
        return greeting.name

    async def _serve(self, frontend: str, wire: Wire) -> None:
        session = Session(self._served, self._config, frontend, self._tracer)
        self._sessions.add(session)
        try:
            await session.run(wire, wire.write)
        finally:
            self._sessions.discard(session)


async def _next(wire: Wire) -> bytes:
    message = await wire.read()
    if message is None:
        raise MalformedMessage("stream", "a handshake, not its end")
    return message
