"""Mock workers in a process of their own. Prints name and address of each when they are ready.

python worker_process.py '{"workers": [{"name": ..., "role": ..., "profile": {...}}, ...]}'
"""

import asyncio
import json
import os
import signal
import sys

from stafette.kvtransfer.agent_config import AgentConfig
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.worker import MockWorker
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.server import WorkerServer

FLAGS = {
    "model": "smollm2",
    "max_num_seqs": 16,
    "max_model_len": 1024,
    "num_kv_blocks": 512,
    "max_num_batched_tokens": 128,
    "prefix_cache_key": "the cluster's key",
}


async def main() -> None:
    told = json.loads(sys.argv[1])
    token = told["token"].encode()
    host = MockHost(AgentConfig(name=f"mock-{os.getpid()}", token=token, transports=("tcp",)))
    service = ServiceConfig(token=token, beat_s=0.2, silence_s=3.0)
    workers, servers = [], []
    for each in told["workers"]:
        profile = Profile(**each.pop("profile", {}))
        engine = EngineConfig(**(FLAGS | each.pop("engine", {})))
        worker = MockWorker(MockerConfig(engine=engine, profile=profile, **each), host)
        workers.append(worker)
        servers.append(await WorkerServer.start(worker, service))
    addresses = {each.name: server.address for each, server in zip(workers, servers, strict=True)}
    print(json.dumps({"addresses": addresses, "torch": "torch" in sys.modules}), flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    for server in servers:
        await server.stop()
    for worker in workers:
        await worker.close()
    host.close()


asyncio.run(main())
