"""Mooncake's transfer engine over TCP."""

from typing import cast

from mooncake.engine import TransferEngine  # type: ignore[import-not-found]

from benchmarks.kvtransfer.peers import pools
from benchmarks.kvtransfer.peers.pair import Pair
from benchmarks.kvtransfer.peers.protocol import Ask, Blocks, Bytes, OwnerEnd, ReaderEnd

_HOST = "127.0.0.1"
_BATCH = 512  # above some 1,000 requests to a peer it refuses the whole batch


class Owner(OwnerEnd):
    def __init__(self, option: str) -> None:
        self._engine = TransferEngine()

    def allocate(self) -> Bytes:
        return pools.allocate()

    def start(self, pool: Bytes) -> object:
        _offer(self._engine, pool)
        return f"{_HOST}:{self._engine.get_rpc_port()}", pool.ctypes.data

    def close(self) -> None:
        return


class Reader(ReaderEnd):
    def start(self, pool: Bytes, hello: object, ask: Ask) -> None:
        self._peer, self._theirs = cast(tuple[str, int], hello)
        self._ours = pool.ctypes.data
        self._engine = TransferEngine()
        _offer(self._engine, pool)

    def read(self, into: Blocks, source: Blocks, block_bytes: int) -> None:
        ours = (self._ours + into * block_bytes).tolist()
        theirs = (self._theirs + source * block_bytes).tolist()
        for first in range(0, len(ours), _BATCH):
            some = slice(first, first + _BATCH)
            sizes = [block_bytes] * len(ours[some])
            read = self._engine.batch_transfer_sync_read
            _check("read", read(self._peer, ours[some], theirs[some], sizes))

    def close(self) -> None:
        return


def contender(option: str) -> Pair:
    return Pair.of(__name__, option, Reader())


def _offer(engine: TransferEngine, pool: Bytes) -> None:
    _check("initialize", engine.initialize(_HOST, "P2PHANDSHAKE", "tcp", ""))
    _check("register_memory", engine.register_memory(pool.ctypes.data, pool.nbytes))


def _check(doing: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{doing} returned {status}")
