"""Runs one level: asks when it is time, and hands on a record of each request."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from stafette.platform.bench.asking import Heard, Manner, Message, ask
from stafette.platform.bench.client import Client
from stafette.platform.bench.errors import ServerLost
from stafette.platform.bench.load import Conversation, Level
from stafette.platform.bench.record import Record
from stafette.platform.bench.words import Speller

_LOST_IN_A_ROW = 3  # then it is asked whether anybody is there
_PROBE_S = 10.0


@dataclass(slots=True)
class Driver:
    """Of one level. Raises ServerLost when the server stops to answer."""

    client: Client
    manner: Manner
    speller: Speller
    keep: Callable[[Record], None]
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _began: float = 0.0
    _lost: int = 0  # in a row

    async def run(self, level: Level) -> float:
        """Return how long it took, in seconds."""
        if level.limit is not None:
            await self.client.warm(min(level.limit, level.num_requests))
        self._began = time.perf_counter()
        try:
            if level.limit is None:
                await self._each_when_due(level.conversations())
            else:
                await self._so_many_at_once(level.conversations(), level.limit)
        except BaseExceptionGroup as group:  # the others were cancelled by the first
            raise group.exceptions[0] from None
        return time.perf_counter() - self._began

    async def _so_many_at_once(self, coming: Iterator[Conversation], limit: int) -> None:
        async def user() -> None:
            for conversation in coming:
                await self._converse(conversation, self._now())

        async with asyncio.TaskGroup() as users:
            for _ in range(limit):
                users.create_task(user())

    async def _each_when_due(self, coming: Iterator[Conversation]) -> None:
        async with asyncio.TaskGroup() as users:
            for conversation in coming:
                await asyncio.sleep(max(0.0, conversation.due_s - self._now()))
                users.create_task(self._converse(conversation, conversation.due_s))

    async def _converse(self, conversation: Conversation, due_s: float) -> None:
        said: list[Message] = []
        for number, turn in enumerate(conversation.turns):
            if number:
                await asyncio.sleep(turn.pause_s)
                due_s = self._now()
            said.append({"role": "user", "content": self.speller.text(turn.pieces)})
            heard = await ask(self.client, self.manner, said, turn.output_tokens)
            self.keep(self._record(heard, conversation.name, number, due_s))
            await self._watch(heard)
            if heard.error:
                return  # the next turn would be another one than was meant
            said.append({"role": "assistant", "content": heard.text})

    def _record(self, heard: Heard, name: str, turn: int, due_s: float) -> Record:
        began_s = heard.began - self._began
        return Record(
            number=next(self._numbers),
            session=name,
            turn=turn,
            began_s=began_s,
            late_s=max(0.0, began_s - due_s),
            chunks_s=tuple(heard.chunks_s),
            streamed=self.manner.stream,
            prompt_tokens=heard.prompt_tokens,
            cached_tokens=heard.cached_tokens,
            output_tokens=heard.output_tokens,
            ended_s=heard.ended_s,
            error=heard.error,
        )

    async def _watch(self, heard: Heard) -> None:
        self._lost = self._lost + 1 if heard.lost else 0
        if self._lost >= _LOST_IN_A_ROW and not await _answers(self.client):
            remedy = f"stopped answering ({heard.error}): start it, and run the same command again"
            raise ServerLost("--endpoint", self.client.endpoint.url, remedy)

    def _now(self) -> float:
        return time.perf_counter() - self._began


async def _answers(client: Client) -> bool:
    try:
        await client.get("/v1/models", _PROBE_S)
    except (OSError, TimeoutError):
        return False
    return True
