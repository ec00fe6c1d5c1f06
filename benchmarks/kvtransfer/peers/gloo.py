"""torch.distributed with gloo: the owner packs a list into one tensor, the reader unpacks it."""

import threading
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed

from benchmarks.kvtransfer.peers import pools
from benchmarks.kvtransfer.peers.pair import Pair
from benchmarks.kvtransfer.peers.protocol import Ask, Blocks, Bytes, OwnerEnd, ReaderEnd, Run

dist: Any = torch.distributed  # its store has no types

_HOST = "127.0.0.1"
_PATIENCE = timedelta(hours=2)  # both processes are stopped while others are measured
_OWNER, _READER = 0, 1


class Owner(OwnerEnd):
    def __init__(self, option: str) -> None:
        self._store = dist.TCPStore(
            _HOST, 0, 2, is_master=True, timeout=_PATIENCE, wait_for_workers=False
        )

    def allocate(self) -> Bytes:
        return pools.allocate()

    def start(self, pool: Bytes) -> object:
        threading.Thread(target=self._serve, args=(pool,), daemon=True).start()
        return self._store.port

    def close(self) -> None:
        return  # its thread goes with the process

    def _serve(self, pool: Bytes) -> None:
        _join(self._store, _OWNER)
        words = pool.view(np.int64)
        head = torch.empty(2, dtype=torch.int64)
        while True:
            dist.recv(head, _READER)
            num_blocks, block_bytes = head.tolist()
            blocks = torch.empty(num_blocks, dtype=torch.int64)
            dist.recv(blocks, _READER)
            packed = words.reshape(-1, block_bytes // 8)[blocks.numpy()]
            dist.send(torch.from_numpy(packed), _READER)


class Reader(ReaderEnd):
    def start(self, pool: Bytes, hello: object, ask: Ask) -> None:
        self._words = pool.view(np.int64)
        store = dist.TCPStore(_HOST, int(str(hello)), 2, is_master=False, timeout=_PATIENCE)
        _join(store, _READER)

    def prepare(self, run: Run) -> None:
        self._packed = torch.empty(run.num_blocks, run.block_bytes // 8, dtype=torch.int64)

    def read(self, into: Blocks, source: Blocks, block_bytes: int) -> None:
        dist.send(torch.tensor([len(source), block_bytes]), _OWNER)
        dist.send(torch.from_numpy(source), _OWNER)
        dist.recv(self._packed, _OWNER)
        self._words.reshape(-1, block_bytes // 8)[into] = self._packed.numpy()

    def close(self) -> None:
        return


def contender(option: str) -> Pair:
    return Pair.of(__name__, option, Reader())


def _join(store: Any, rank: int) -> None:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=_PATIENCE)
