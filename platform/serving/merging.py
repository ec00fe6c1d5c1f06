"""Several streams as one, in batches of all that has come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merge(
    streams: Sequence[AsyncGenerator[list[Item], None]],
) -> AsyncGenerator[list[Item], None]:
    """Yield what has come since the last look; the first error ends all of them."""
    waiting: list[Item] = []
    news = asyncio.Event()

    async def pump(stream: AsyncGenerator[list[Item], None]) -> None:
        try:
            async with aclosing(stream):
                async for items in stream:
                    waiting.extend(items)
                    news.set()
        finally:
            news.set()

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        while waiting or not all(task.done() for task in tasks):
            await news.wait()
            news.clear()
            batch, waiting[:] = list(waiting), []
            if batch:
                yield batch
            for task in tasks:
                if task.done():
                    task.result()
        for task in tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
