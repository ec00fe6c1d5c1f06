"""The stream as one gRPC call that both ends write on, each on a connection of its own."""

from collections.abc import AsyncIterator
from typing import Any

import grpc  # type: ignore[import-untyped]

from stafette.kvtransfer.errors import MalformedMessage
from stafette.workers.service.auth import MAX_BYTES
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.streams.tls import client_side, server_side
from stafette.workers.service.streams.wire import Listener, Serve, Stream, StreamEnded, Wire

_SERVICE, _METHOD = "stafette.Worker", "Stream"


class GrpcStream(Stream):
    async def listen(self, config: ServiceConfig, serve: Serve) -> Listener:
        listener = _GrpcListener(config, serve)
        await listener.start()
        return listener

    async def connect(self, address: str, config: ServiceConfig) -> Wire:
        return _FrontendEnd(address, config)


class _GrpcListener(Listener):
    def __init__(self, config: ServiceConfig, serve: Serve) -> None:
        self._serve = serve
        self._server = grpc.aio.server(options=_options(config))
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        generic = grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler})
        self._server.add_generic_rpc_handlers((generic,))
        self._port = self._bind(config)

    @property
    def port(self) -> int:
        return self._port

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.stop(None)

    def _bind(self, config: ServiceConfig) -> int:
        wanted = f"{config.host}:{config.port}"
        server_side(config)  # gRPC would call a wrong certificate a wrong address
        try:
            if config.tls_key is None:
                return int(self._server.add_insecure_port(wanted))
            pair = (config.tls_key, config.tls_certificate)
            credentials = grpc.ssl_server_credentials([pair])
            return int(self._server.add_secure_port(wanted, credentials))
        except RuntimeError as error:
            raise OSError(str(error)) from None

    async def _stream(self, messages: AsyncIterator[bytes], context: Any) -> None:
        wire = _WorkerEnd(messages, context)
        await self._serve(wire)
        if wire.reason:
            await context.abort(grpc.StatusCode.ABORTED, wire.reason)


class _WorkerEnd(Wire):
    """Lives as long as the call's handler: gRPC ends the stream behind it."""

    def __init__(self, messages: AsyncIterator[bytes], context: Any) -> None:
        self.max_bytes = MAX_BYTES
        self.reason = ""
        self._messages = messages
        self._context = context

    @property
    def peer(self) -> str:
        return str(self._context.peer())

    async def read(self) -> bytes | None:
        async for message in self._messages:
            if len(message) > self.max_bytes:
                wanted = f"at most {self.max_bytes} bytes, not {len(message)}"
                raise MalformedMessage("message", wanted)
            return message
        return None

    async def write(self, message: bytes) -> None:
        await self._context.write(message)

    async def close(self, reason: str = "", timeout_s: float = 1.0) -> None:
        self.reason = reason

    def abort(self) -> None:
        self.reason = self.reason or "the worker ended it"


class _FrontendEnd(Wire):
    """Whether somebody is there is known with the first message."""

    def __init__(self, address: str, config: ServiceConfig) -> None:
        self.max_bytes = config.max_message_bytes
        self._address = address
        self._channel = _channel(address, config)
        self._call = self._channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()

    @property
    def peer(self) -> str:
        return self._address

    async def read(self) -> bytes | None:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _ended(error) from None
        return None if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise _ended(error) from None

    async def close(self, reason: str = "", timeout_s: float = 1.0) -> None:
        self._call.cancel()
        await self._channel.close()

    def abort(self) -> None:
        self._call.cancel()


def _ended(error: grpc.aio.AioRpcError) -> StreamEnded:
    told = error.details() or "no reason was told"
    aborted = error.code() is grpc.StatusCode.ABORTED  # by the worker, in its own words
    return StreamEnded(told if aborted else f"{error.code().name}: {told}")


def _options(config: ServiceConfig) -> list[tuple[str, int]]:
    """Return gRPC's options, the same at both ends."""
    return [
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.so_reuseport", 0),  # else a second worker could share our port
    ]


def _channel(address: str, config: ServiceConfig) -> Any:
    # Each client has a connection of its own: what another one does on it is not our business.
    chosen = [*_options(config), ("grpc.use_local_subchannel_pool", 1)]
    if config.tls_authority is None:
        return grpc.aio.insecure_channel(address, options=chosen)
    client_side(config)  # else gRPC takes what is no certificate, and finds nobody to trust
    credentials = grpc.ssl_channel_credentials(config.tls_authority)
    return grpc.aio.secure_channel(address, credentials, options=chosen)
