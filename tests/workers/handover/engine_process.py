"""A process with an engine that hands over: does what it is told, one JSON object a line.

    python engine_process.py '{"name": ..., "transports": [...], "flags": {...}, ...}'

A command is {"id", "op", ...}; they run side by side. The answer is {"id", "result"}, or {"id",
"error"}. The first line tells the agent's metadata.
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.connector import P2pConnector
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.workers.async_engine import AsyncEngine
from stafette.workers.building import build_engine
from stafette.workers.config import EngineConfig
from stafette.workers.handover.handover import Handover
from stafette.workers.request import Request
from stafette.workers.runner.far_ranks import SpreadRanks
from stafette.workers.runner.kv_member import open_p2p
from stafette.workers.sampling.params import SamplingParams

TOKEN = b"the cluster's token"
LAUNCHED: list[subprocess.Popen] = []  # their stdin must stay open


class Worker:
    def __init__(self, handover: Handover, agent: Agent) -> None:
        self.handover = handover
        self.agent = agent
        self.tasks: dict[str, asyncio.Task] = {}  # by request

    @classmethod
    async def start(cls, settings: dict) -> "Worker":
        flags = EngineConfig(share_kv_memory=True, **settings["flags"])
        if "num_nodes" in settings:
            return await cls.spread(flags, settings)
        engine = await AsyncEngine.start(flags)
        if "step_s" in settings:
            slow_down(engine, settings["step_s"])
        agent = Agent(
            AgentConfig(
                name=settings["name"],
                token=TOKEN,
                transports=tuple(settings["transports"]),
                lease=LeaseConfig(**settings.get("lease", {})),
            )
        )
        connector = P2pConnector(agent, P2pConfig(**settings.get("p2p", {})))
        return cls(await Handover.start(engine, connector), agent)

    @classmethod
    async def spread(cls, flags: EngineConfig, settings: dict) -> "Worker":
        """Be the first of several nodes, the others of which are on this host as well."""
        ranks = SpreadRanks("127.0.0.1", TOKEN, settings["num_nodes"], launch)
        core = build_engine(flags, settings["name"], ranks)
        agent = Agent(
            AgentConfig(
                name=settings["name"], token=TOKEN, transports=tuple(settings["transports"])
            )
        )
        connector = open_p2p(core, agent, P2pConfig(**settings.get("p2p", {})))
        engine = AsyncEngine(core, asyncio.get_running_loop())
        return cls(await Handover.start(engine, connector), agent)

    async def add_peer(self, metadata: str) -> str:
        return self.handover.connector.add_peer(bytes.fromhex(metadata))

    async def members(self) -> list[list[str]]:
        return [[name, told.hex()] for name, told in self.handover.connector.member_agents]

    async def prefill(self, name: str, tokens: list[int], params: dict) -> int:
        wanted = SamplingParams(temperature=0.0, max_tokens=1)
        self.tasks[name] = asyncio.current_task()
        exported = await self.handover.prefill(_request(name, tokens, wanted), params)
        return exported.num_tokens

    async def offer(self, name: str, tokens: list[int], params: dict) -> int:
        exported = await self.handover.offer(_request(name, tokens, SamplingParams()), params)
        return exported.num_tokens

    async def generate(
        self, name: str, tokens: list[int], max_tokens: int, params: dict, **sampling
    ) -> dict:
        wanted = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True} | sampling
        request = _request(name, tokens, SamplingParams(**wanted))
        self.tasks[name] = asyncio.current_task()
        found: list[int] = []
        cached = 0
        async for delta in self.handover.generate(request, params):
            found += delta.token_ids
            cached = max(cached, delta.num_cached_tokens)
        return {"tokens": found, "cached": cached}

    async def cancel(self, name: str) -> bool:
        return self.tasks[name].cancel()

    async def stats(self) -> dict:
        scheduler = self.handover.engine.stats().scheduler
        transfers = self.agent.stats().transfers
        imports, exports = self.handover.imports.counters, self.handover.exports.counters
        return {
            "held_blocks": scheduler.num_blocks_used,
            "moved_bytes": {name: each.nbytes for name, each in transfers.items() if name},
            "pulled_tokens": imports.pulled_tokens,
            "shortfalls": sum(imports.shortfalls.values()),
            "pinned_blocks": exports.num_pinned,
            "living_leases": self.agent.stats().leases.living,
            "unsettled": self.agent.stats().unsettled,
            "block_bytes": self.handover.connector.shares[0].layout.block_bytes,
        }

    async def reset(self) -> None:
        await self.handover.engine.call(lambda engine: engine.reset_prefix_cache())

    async def close(self) -> None:
        await self.handover.close()
        self.agent.close()
        await self.handover.engine.close()
        for process in LAUNCHED:
            process.stdin.close()
            process.wait(60)


def launch(node: int, port: int, ranks: Sequence[int]) -> Callable[[], str]:
    for rank in ranks:
        command = [sys.executable, "-m", "stafette.workers.runner.rank", "127.0.0.1", str(port)]
        process = subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE)
        process.stdin.write(TOKEN + b"\n")
        process.stdin.flush()
        LAUNCHED.append(process)
    return lambda: ""


def slow_down(engine: AsyncEngine, step_s: float) -> None:
    """Let every step take that much longer: so that a test can break something in between."""
    runner = engine.engine.executor.runner
    forward = runner.forward

    def slow(inputs):
        time.sleep(step_s)
        return forward(inputs)

    runner.forward = slow


def _request(name: str, tokens: list[int], wanted: SamplingParams) -> Request:
    return Request(request_id=name, prompt_token_ids=tokens, params=wanted)


async def answer(worker: Worker, command: dict) -> None:
    number, op = command.pop("id"), command.pop("op")
    try:
        told = {"id": number, "result": await getattr(worker, op)(**command)}
    except asyncio.CancelledError:
        told = {"id": number, "error": "cancelled"}
    except Exception as error:
        told = {"id": number, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), flush=True)


async def main() -> None:
    worker = await Worker.start(json.loads(sys.argv[1]))
    commands: asyncio.Queue[dict | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(commands.put_nowait, json.loads(line))
        loop.call_soon_threadsafe(commands.put_nowait, None)

    threading.Thread(target=listen, daemon=True).start()
    print(json.dumps({"id": 0, "result": worker.agent.metadata().hex()}), flush=True)
    tasks = set()
    while (command := await commands.get()) is not None:
        tasks.add(asyncio.create_task(answer(worker, command)))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await worker.close()


if __name__ == "__main__":
    asyncio.run(main())
