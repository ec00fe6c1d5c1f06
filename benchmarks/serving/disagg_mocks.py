"""Mock workers in a process of their own: `disagg_mocks.py NAME...`, of the roles in their names.

Says their addresses when they serve, and ends when its input does.
"""

import asyncio
import json
import sys

import uvloop

from benchmarks.serving.front import BLOCK_SIZE, MODEL
from benchmarks.serving.nursery import KEY, TOKEN
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.worker import MockWorker
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.server import WorkerServer
from stafette.workers.service.standing import Role

ENGINE = EngineConfig(
    model=MODEL,
    block_size=BLOCK_SIZE,
    num_kv_blocks=16_384,
    max_model_len=32_768,
    max_num_batched_tokens=2_048,  # so a long prompt never holds a step up for longer
    prefix_cache_key=KEY,
)
SPEEDUP = 0.2  # slow enough that a busy machine still steps in time


async def main(names: list[str]) -> None:
    secret = TOKEN.encode()
    host = MockHost(AgentConfig(name="mocks", token=secret, transports=("tcp",)))
    servers = {}
    for name in names:
        config = MockerConfig(name=name, role=_role(name), engine=ENGINE, speedup=SPEEDUP)
        worker = MockWorker(config, host)
        servers[name] = await WorkerServer.start(worker, ServiceConfig(token=secret))
    print(json.dumps({name: server.address for name, server in servers.items()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def _role(name: str) -> Role:
    roles: dict[str, Role] = {"p": "prefill", "d": "decode", "b": "both"}
    return roles[name[0]]


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
