"""A whole worker in a process of its own, with the embedded model. Prints its address when ready.

python worker_process.py '{"name": ..., "role": ..., "step_s": ..., "engine": {...}}'
"""

import asyncio
import json
import signal
import sys
import time

from stafette.kvtransfer.agent_config import AgentConfig
from stafette.workers.config import EngineConfig
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.engine_worker import EngineWorker, WorkerConfig
from stafette.workers.service.server import WorkerServer

FLAGS = {
    "max_num_seqs": 16,
    "max_model_len": 1024,
    "num_kv_blocks": 512,
    "max_num_batched_tokens": 128,
    "num_threads": 1,
    "prefix_cache_key": "the cluster's key",
}


def slow_down(worker: EngineWorker, step_s: float) -> None:
    runner = worker.engine.engine.executor.runner
    forward = runner.forward

    def slow(inputs):
        time.sleep(step_s)
        return forward(inputs)

    runner.forward = slow


async def main() -> None:
    told = json.loads(sys.argv[1])
    token = told["token"].encode()
    config = WorkerConfig(
        name=told["name"],
        role=told["role"],
        engine=EngineConfig(**(FLAGS | told.get("engine", {}))),
        agent=AgentConfig(name=told["name"], token=token, transports=tuple(told["transports"])),
    )
    worker = await EngineWorker.start(config)
    if told.get("step_s"):
        slow_down(worker, told["step_s"])
    service = ServiceConfig(token=token, beat_s=0.2, silence_s=3.0, port=told.get("port", 0))
    server = await WorkerServer.start(worker, service)
    print(server.address, flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop()
    await worker.close()


asyncio.run(main())
