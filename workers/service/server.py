"""A worker's listener: gRPC, one long stream for each frontend that proves itself."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc  # type: ignore[import-untyped]

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import pack
from stafette.workers.errors import ConfigError
from stafette.workers.service.auth import Challenge, Greeting
from stafette.workers.service.beats import Silence
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.outbox import Overflow
from stafette.workers.service.serving import Served
from stafette.workers.service.session import Session
from stafette.workers.tracing import WorkerTracer

_log = logging.getLogger(__name__)

SERVICE, METHOD = "stafette.Worker", "Stream"
_REASONS: dict[type[Exception], grpc.StatusCode] = {
    MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
    Overflow: grpc.StatusCode.RESOURCE_EXHAUSTED,
    PermissionError: grpc.StatusCode.UNAUTHENTICATED,
    Silence: grpc.StatusCode.DEADLINE_EXCEEDED,
    TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class WorkerServer:
    """Make it with `await WorkerServer.start(...)`, end it with `stop`."""

    def __init__(
        self, served: Served, config: ServiceConfig, tracer: WorkerTracer | None = None
    ) -> None:
        self._served = served
        self._tracer = tracer
        self._config = config
        self._sessions: set[Session] = set()
        self._server = grpc.aio.server(options=options(config))
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        generic = grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})
        self._server.add_generic_rpc_handlers((generic,))
        self.refused = 0  # streams that proved nothing, or broke the format
        self.address = ""
        served.on_change = self._announce

    @classmethod
    async def start(
        cls, served: Served, config: ServiceConfig, tracer: WorkerTracer | None = None
    ) -> "WorkerServer":
        server = cls(served, config, tracer)
        port = server._bind()
        await server._server.start()
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
        await self._server.stop(None)

    def _bind(self) -> int:
        config, wanted = self._config, f"{self._config.host}:{self._config.port}"
        try:
            if config.tls_key is None:
                return int(self._server.add_insecure_port(wanted))
            pair = (config.tls_key, config.tls_certificate)
            credentials = grpc.ssl_server_credentials([pair])
            return int(self._server.add_secure_port(wanted, credentials))
        except RuntimeError as error:
            remedy = f"must be a free address of this host ({error})"
            raise ConfigError("service.host, port", wanted, remedy) from None

    def _announce(self) -> None:
        for session in self._sessions:
            session.announce()

    async def _stream(self, messages: AsyncIterator[bytes], context: Any) -> None:
        try:
            async with asyncio.timeout(self._config.handshake_timeout_s):
                frontend = await self._admit(messages, context)
            await self._serve(frontend, messages, context)
        except tuple(_REASONS) as error:
            self.refused += 1
            _log.warning("ended the stream of %s: %s", context.peer(), error or type(error))
            await context.abort(_REASONS[type(error)], str(error))

    async def _admit(self, messages: AsyncIterator[bytes], context: Any) -> str:
        """Return who proved that it belongs to our cluster."""
        greeting = Greeting.read(await _next(messages))
        token, served = self._config.token, self._served
        challenge = Challenge.make(token, greeting, served.name, served.epoch)
        await context.write(challenge.pack())
        if not challenge.is_answered(token, greeting, await _next(messages)):
            raise PermissionError("it did not prove that it knows the cluster's token")
        await context.write(pack([dict(served.describe())]))
        return greeting.name

    async def _serve(self, frontend: str, messages: AsyncIterator[bytes], context: Any) -> None:
        session = Session(self._served, self._config, frontend, self._tracer)
        self._sessions.add(session)
        try:
            await session.run(messages, context.write)
        finally:
            self._sessions.discard(session)


def options(config: ServiceConfig) -> list[tuple[str, int]]:
    """Return gRPC's options, the same at both ends."""
    return [
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.so_reuseport", 0),  # else a second worker could share our port
    ]


async def _next(messages: AsyncIterator[bytes]) -> bytes:
    async for message in messages:
        return message
    raise MalformedMessage("stream", "a handshake, not its end")
