"""The ways to carry a worker's stream, by the name that the settings have for them."""

from collections.abc import Callable

from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.streams.wire import Stream


def stream_of(config: ServiceConfig) -> Stream:
    return _STREAMS[config.stream]()


def _grpc() -> Stream:
    from stafette.workers.service.streams.over_grpc import GrpcStream

    return GrpcStream()


def _tcp() -> Stream:
    from stafette.workers.service.streams.over_tcp import TcpStream

    return TcpStream()


_STREAMS: dict[str, Callable[[], Stream]] = {"grpc": _grpc, "tcp": _tcp}
