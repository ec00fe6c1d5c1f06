"""What tests do with an engine of their own process, and a connector that they move by hand."""

import asyncio
import random
import threading
from collections.abc import Callable

import numpy as np

from stafette.kvtransfer.connectors.connector import Finish, KvConnector, LoadOrder
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.errors import InvalidValue
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams

FLAGS = {
    "max_num_seqs": 8,
    "max_model_len": 512,
    "num_kv_blocks": 128,
    "max_num_batched_tokens": 64,  # so that a prompt is computed in several chunks
    "num_threads": 1,
    "share_kv_memory": True,
}


class Shelf(KvConnector):
    """`by_hand`: loads move only by `bring`, and saves are released only by `release`."""

    name = "shelf"

    def __init__(self, by_hand: bool = False) -> None:
        self.by_hand = by_hand
        self.blocks: dict[bytes, np.ndarray] = {}
        self.loads: list[Load] = []  # that were started, of at least one block
        self.saves: list = []
        self.finished: list[tuple[str, str]] = []
        self.unknown = 0  # how often it will say that it does not know yet
        self.on_start: Callable[[], None] = lambda: None  # in the engine's thread
        self.started = threading.Event()

    @classmethod
    def of(cls, agent, config):
        return cls()

    @property
    def pool(self) -> np.ndarray:
        share = self.shares[0]
        return share.buffer.array.reshape(-1, share.layout.block_bytes)

    def check(self, params):
        if params.get("shelf") == "wrong":
            raise InvalidValue("shelf", "wrong", "must be right")

    def matched_tokens(self, request, num_held):
        if self.unknown:
            self.unknown -= 1
            return None
        first = num_held // request.block_size
        missing = request.hashes[first:]
        count = next((i for i, h in enumerate(missing) if h not in self.blocks), len(missing))
        return count * request.block_size

    def begin(self, request, first, blocks):
        return LoadOrder.of(request, first, blocks)

    def finish(self, request, reason=""):
        self.finished.append((request.request_id, reason))
        return Finish()

    def start_load(self, order):
        load = Load(order)
        if order.blocks:
            load.begin_write()
            self.loads.append(load)
            self.on_start()
            self.started.set()
            if not self.by_hand:
                threading.Thread(target=self._bring_all, args=(load,)).start()
        return load

    def save_layer(self, layer, save):
        for block, block_hash in zip(save.blocks, save.hashes, strict=True):
            self.blocks[block_hash] = self.pool[block].copy()
        self.saves.append(save)
        if not self.by_hand:
            threading.Thread(target=save.release).start()

    def bring(self, load: Load, count: int) -> None:
        """Fill the first blocks of a load."""
        order = load.order
        for block, block_hash in list(zip(order.blocks, order.hashes, strict=True))[:count]:
            self.pool[block] = self.blocks[block_hash]
        load.arrive(order.first, order.first + count)

    def release(self) -> None:
        saves, self.saves = self.saves, []
        for save in saves:
            save.release()

    def close(self):
        for load in self.loads:
            if not load.settled:
                load.cancel()
                load.end_write()
        if self.by_hand:
            self.release()

    def _bring_all(self, load: Load) -> None:
        self.bring(load, len(load.order.blocks))
        load.end_write()


async def idle(handover) -> int:
    """Wait until the engine has no work; return the blocks still held."""
    while await handover.engine.call(lambda engine: engine.has_work):
        await asyncio.sleep(0.01)
    await handover.engine.call(lambda engine: engine.after_step())
    return handover.engine.stats().scheduler.num_blocks_used


def request(name: str, length: int, seed: int = 0, **params) -> Request:
    pick = random.Random(seed)
    return request_of(name, [pick.randrange(100, 40_000) for _ in range(length)], **params)


def request_of(name: str, tokens: list[int], **params) -> Request:
    wanted = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | params
    return Request(request_id=name, prompt_token_ids=tokens, params=SamplingParams(**wanted))


async def answer(handover, wanted, params=None) -> tuple[list[int], int]:
    """Return the tokens, and how many of the prompt's were cached."""
    tokens, cached = [], 0
    async for delta in handover.generate(wanted, params or {}):
        tokens += delta.token_ids
        cached = max(cached, delta.num_cached_tokens)
    return tokens, cached


async def reset(handover) -> None:
    await handover.engine.call(lambda engine: engine.reset_prefix_cache())


async def learn(handover, shelf, length: int, seed: int = 0, **params) -> list[int]:
    """Put a prompt's blocks on the shelf, and forget them here; return the engine's own answer."""
    await handover.prefill(request("learn", length, seed, max_tokens=1), {})
    shelf.release() if shelf.by_hand else None
    shelf_blocks, shelf.blocks = shelf.blocks, {}
    await reset(handover)
    alone, cached = await answer(handover, request("alone", length, seed, **params))
    assert cached == 0
    await reset(handover)
    shelf.blocks = shelf_blocks
    shelf.finished.clear()
    return alone


async def loading(shelf):
    """Return the load that the shelf is asked for next."""
    await asyncio.to_thread(shelf.started.wait, 20.0)
    shelf.started.clear()
    return shelf.loads[-1]
