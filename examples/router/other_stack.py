"""How another stack uses the router: its own workers, its own frontend, placements over HTTP.

    python examples/router/other_stack.py

Starts a router, registers two workers that send their KV events by HTTP, and serves three turns of
a conversation. The workers only pretend to compute; everything else is what a real stack does.
Stock vLLM workers need less: register them with the address of their ZeroMQ events (see
docs/router-service.md).
"""

import asyncio
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stafette.kvtransfer.blocks import BlockHasher
from stafette.router.service.client import RouterClient, Selected
from stafette.router.service.telling import tell_decisions

BLOCK_SIZE, MODEL, ANSWER_TOKENS = 16, "my-model", 40


class Worker:
    """Caches what it computes, and tells the router so."""

    def __init__(self, name: str, hasher: BlockHasher, router: RouterClient) -> None:
        self.name = name
        self._hasher = hasher
        self._router = router
        self._cached: set[bytes] = set()
        self._batches = 0

    async def join(self) -> None:
        about = {"model": MODEL, "fingerprint": self._hasher.fingerprint, "pushes_events": True}
        await self._router.register(self.name, BLOCK_SIZE, **about, total_blocks=1_000, ttl_s=30)

    async def compute(self, tokens: list[int]) -> int:
        """Return how many of the prompt's tokens were cached."""
        hashes = self._hasher.hash_blocks(tokens)
        new = [one for one in hashes if one not in self._cached]
        self._cached.update(new)
        if new:
            first = hashes.index(new[0])
            parent = hashes[first - 1] if first else None
            stored = ["stored", parent, len(new[0]), b"".join(new), "device"]
            self._batches += 1
            told = {"seq": self._batches, "timestamp": float(self._batches), "events": [stored]}
            await self._router.post("events", worker=self.name, **told)
        return (len(hashes) - len(new)) * BLOCK_SIZE


async def turn(
    router: RouterClient, workers: dict[str, Worker], number: int, tokens: list[int]
) -> Selected:
    """Serve one request: place it, tell when its first token is there, and when it is over.

    Should this process die meanwhile, the reservation is given back when its lease ends.
    """
    name = f"turn-{number}"
    placed = await router.select(name, tokens, model=MODEL, session="chat-7", ttl_s=10)
    try:
        cached = await workers[placed.decode].compute(tokens)
        await router.first_token(name, cached_tokens=cached, ttft_ms=placed.ttft_ms)
        await router.progress(name, ANSWER_TOKENS)
    finally:
        await router.free(name, output_tokens=ANSWER_TOKENS)
    return placed


async def main() -> None:
    key = secrets.token_hex(16)  # the cluster's secret: the router and all workers have it
    hasher = BlockHasher(key, BLOCK_SIZE, MODEL)
    async with router_with(key) as router:
        workers = {name: Worker(name, hasher, router) for name in ("worker-a", "worker-b")}
        for worker in workers.values():
            await worker.join()
        conversation = list(range(200))
        for number in range(1, 4):
            placed = await turn(router, workers, number, conversation)
            print(f"turn {number}: {placed.decode}, {placed.cached_tokens} tokens cached there")
            conversation += range(1_000 * number, 1_000 * number + 100)
        print(f"\nWhy?\n\n{tell_decisions(await router.explain(last=1))}")


@asynccontextmanager
async def router_with(key: str) -> AsyncIterator[RouterClient]:
    """Run `stafette router serve`, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "stafette", "router", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"STAFETTE_ROUTER_KEY": key},
    )
    assert process.stdout is not None
    try:
        ready = re.search(r"ready at (\S+)", process.stdout.readline())
        assert ready is not None, "the router did not start"
        async with RouterClient(ready[1]) as router:
            yield router
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(main())
