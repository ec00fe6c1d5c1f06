"""One engine of the hand-over benchmark: answers JSON questions, one line each.

python benchmarks/workers/handover_engine.py '{"name": ..., "transports": [...], ...}'
"""

import asyncio
import json
import os
import random
import sys
import time
from typing import Any

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.p2p.connector import P2pConnector
from stafette.workers.async_engine import AsyncEngine
from stafette.workers.config import EngineConfig
from stafette.workers.handover.handover import Handover
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams

TOKEN = b"only this benchmark's"
Answer = dict[str, Any]


class BenchedEngine:
    def __init__(self, handover: Handover, agent: Agent) -> None:
        self._handover = handover
        self._agent = agent
        self._task: asyncio.Task[Answer] | None = None

    @classmethod
    async def start(cls, settings: Answer) -> "BenchedEngine":
        flags = EngineConfig(share_kv_memory=True, **settings["flags"])
        engine = await AsyncEngine.start(flags)
        transports = tuple(settings["transports"])
        agent = Agent(AgentConfig(name=settings["name"], token=TOKEN, transports=transports))
        return cls(await Handover.start(engine, P2pConnector(agent)), agent)

    async def answer(self, question: Answer) -> Answer:
        op = question.pop("op")
        found: Answer = await getattr(self, op)(**question)
        return found

    async def metadata(self) -> Answer:
        return {"metadata": self._agent.metadata().hex()}

    async def add_peer(self, metadata: str) -> Answer:
        return {"peer": self._agent.add_peer(bytes.fromhex(metadata))}

    async def first_token(self, name: str, length: int, params: Answer) -> Answer:
        """Return the milliseconds to the first token of a prompt that is new here."""
        await self._handover.engine.call(lambda engine: engine.reset_prefix_cache())
        before = self._moved()
        started = time.perf_counter()
        async for delta in self._handover.generate(_request(name, length), _unpack(params)):
            milliseconds = (time.perf_counter() - started) * 1e3
            cached = delta.num_cached_tokens
        nbytes, seconds = (now - then for now, then in zip(self._moved(), before, strict=True))
        return {"ms": milliseconds, "cached": cached, "bytes": nbytes, "transfer_s": seconds}

    async def begin_first_token(self, name: str, length: int, params: Answer) -> Answer:
        """Like `first_token`, but the answer is fetched by `result`."""
        self._task = asyncio.create_task(self.first_token(name, length, params))
        return {}

    async def result(self) -> Answer:
        assert self._task is not None, "begin first"
        return await self._task

    async def prefill(self, name: str, length: int, params: Answer, fresh: bool) -> Answer:
        """Compute a prompt, from its first token on if `fresh`, and pass it on."""
        if fresh:
            await self._handover.engine.call(lambda engine: engine.reset_prefix_cache())
        exported = await self._handover.prefill(_request(name, length), _unpack(params))
        return {"tokens": exported.num_tokens, "params": _pack(exported.params)}

    async def offer(self, name: str, length: int, params: Answer) -> Answer:
        exported = await self._handover.offer(_request(name, length), _unpack(params))
        return {"tokens": exported.num_tokens, "params": _pack(exported.params)}

    async def close(self) -> Answer:
        await self._handover.close()
        self._agent.close()
        await self._handover.engine.close()
        return {}

    def _moved(self) -> tuple[int, float]:
        """Return the bytes read so far, and the seconds that the transfers took, added up."""
        counters = self._agent.stats().transfers.values()
        return sum(each.nbytes for each in counters), sum(each.seconds for each in counters)


def _request(name: str, length: int) -> Request:
    pick = random.Random(length)
    tokens = [pick.randrange(1_000, 40_000) for _ in range(length)]
    greedy = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    return Request(request_id=name, prompt_token_ids=tokens, params=greedy)


def _pack(value: Any) -> Any:
    """Return parameters fit for JSON: bytes as hexadecimal digits."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: _pack(each) for key, each in value.items()}
    return [_pack(each) for each in value] if isinstance(value, list) else value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: _unpack(each) for key, each in value.items()}
    return [_unpack(each) for each in value] if isinstance(value, list) else value


async def main() -> None:
    engine = await BenchedEngine.start(json.loads(sys.argv[1]))
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            found = await engine.answer(json.loads(line))
        except Exception as error:  # the parent's business
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), flush=True)
    os._exit(0)  # the parent is gone, or done


if __name__ == "__main__":
    asyncio.run(main())
