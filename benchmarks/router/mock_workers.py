"""The mock workers of a benchmark, in a process of their own; asked by JSON lines.

{"ask": "start", "roles": {name: role}, "token": ..., "profile": {...}, "num_blocks": ...}
{"ask": "stats"}
"""

import os
from collections.abc import Mapping
from typing import Any

import uvloop

from benchmarks.common.answering import answer_lines
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.worker import MockWorker
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.server import WorkerServer

MODEL = "smollm2"  # only its tokenizer is used, by the endpoint
KEY = "benchmark"  # of the block hashes
CLASS = "mock"
BLOCK_SIZE = 16
MAX_MODEL_LEN = 32_768


class MockWorkers:
    """What was started here; it is kept until the process ends."""

    def __init__(self) -> None:
        self._workers: list[MockWorker] = []
        self._servers: list[WorkerServer] = []

    async def start(
        self, roles: Mapping[str, Any], token: str, profile: Mapping[str, Any], num_blocks: int
    ) -> dict[str, Any]:
        """Return the address of each."""
        secret = token.encode()
        name = f"mock-{os.getpid()}"
        host = MockHost(AgentConfig(name=name, token=secret, transports=("tcp",)))
        engine, speed = flags(num_blocks), Profile(**profile)
        addresses = {}
        for name, role in roles.items():
            config = MockerConfig(
                name=name, role=role, engine=engine, profile=speed, worker_class=CLASS
            )
            worker = MockWorker(config, host)
            server = await WorkerServer.start(worker, ServiceConfig(token=secret))
            self._workers.append(worker)
            self._servers.append(server)
            addresses[name] = server.address
        return {"addresses": addresses}

    async def stats(self) -> dict[str, Any]:
        """Return what all of them have done."""
        found = [worker.core.stats() for worker in self._workers]
        queries = sum(each.scheduler.prefix_queries for each in found)
        hits = sum(each.scheduler.prefix_hits for each in found)
        return {
            "computed_tokens": queries - hits,  # of prompts
            "moved_bytes": sum(worker.core.connector.counters.nbytes for worker in self._workers),
            "steps": sum(each.num_steps for each in found),
            "late_seconds": sum(worker.late_seconds for worker in self._workers),
        }


def flags(num_blocks: int) -> EngineConfig:
    """Return the flags of each worker."""
    return EngineConfig(
        model=MODEL,
        block_size=BLOCK_SIZE,
        num_kv_blocks=num_blocks,
        max_model_len=min(MAX_MODEL_LEN, num_blocks * BLOCK_SIZE),
        max_num_batched_tokens=8_192,
        prefix_cache_key=KEY,
    )


async def main() -> None:
    workers = MockWorkers()
    await answer_lines({"start": workers.start, "stats": workers.stats})


if __name__ == "__main__":
    uvloop.run(main())
