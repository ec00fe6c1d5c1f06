"""gRPC: one call a list, answered by a stream of messages that hold up to 1 MiB of blocks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc  # type: ignore[import-untyped]
import numpy as np

from benchmarks.kvtransfer.peers import pools
from benchmarks.kvtransfer.peers.pair import Pair
from benchmarks.kvtransfer.peers.protocol import Ask, Blocks, Bytes, OwnerEnd, ReaderEnd

_SERVICE, _METHOD = "kv.Blocks", "Read"
_MESSAGE_BYTES = 1 << 20
_DEADLINE_S = 60.0


class Owner(OwnerEnd):
    def __init__(self, option: str) -> None:
        self._server = grpc.server(ThreadPoolExecutor(2))

    def allocate(self) -> Bytes:
        return pools.allocate()

    def start(self, pool: Bytes) -> object:
        self._pool = pool
        handler = grpc.unary_stream_rpc_method_handler(self._read)
        generic = grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler})
        self._server.add_generic_rpc_handlers((generic,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return port

    def close(self) -> None:
        self._server.stop(None)

    def _read(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        block_bytes, *_ = numbers = np.frombuffer(request, np.int64)
        for rows in _messages(self._pool, numbers[1:], int(block_bytes)):
            yield rows.tobytes()


class Reader(ReaderEnd):
    def start(self, pool: Bytes, hello: object, ask: Ask) -> None:
        self._pool = pool
        self._channel = grpc.insecure_channel(f"127.0.0.1:{hello}")
        self._read = self._channel.unary_stream(f"/{_SERVICE}/{_METHOD}")

    def read(self, into: Blocks, source: Blocks, block_bytes: int) -> None:
        request = np.concatenate(([block_bytes], source)).astype(np.int64).tobytes()
        places = _places(into, block_bytes)
        size, each = min(block_bytes, _MESSAGE_BYTES), _rows_a_message(block_bytes)
        rows, done = self._pool.view(np.uint64).reshape(-1, size // 8), 0
        for message in self._read(request, timeout=_DEADLINE_S):
            some = places[done : done + each]
            rows[some] = np.frombuffer(message, np.uint64).reshape(len(some), -1)
            done += len(some)

    def close(self) -> None:
        self._channel.close()


def contender(option: str) -> Pair:
    return Pair.of(__name__, option, Reader())


def _messages(pool: Bytes, blocks: Blocks, block_bytes: int) -> Iterator[np.ndarray]:
    size, each = min(block_bytes, _MESSAGE_BYTES), _rows_a_message(block_bytes)
    places, rows = _places(blocks, block_bytes), pool.view(np.uint64).reshape(-1, size // 8)
    for first in range(0, len(places), each):
        yield rows[places[first : first + each]]


def _rows_a_message(block_bytes: int) -> int:
    return max(1, _MESSAGE_BYTES // block_bytes)


def _places(blocks: Blocks, block_bytes: int) -> Blocks:
    """Return the blocks' numbers, or those of their parts that fill a message each."""
    parts = max(1, block_bytes // _MESSAGE_BYTES)
    return (blocks[:, None] * parts + np.arange(parts)).ravel()
