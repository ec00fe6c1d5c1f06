"""A worker in a process of its own: counts, a token every so many seconds. Prints its address.

worker_process.py STEP_S STREAM
"""

import asyncio
import importlib.util
import sys
from pathlib import Path

from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.server import WorkerServer


def counting():
    path = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("service_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def main() -> None:
    module = counting()
    served = module.Counting()
    served.may_go_on.clear()
    config = ServiceConfig(token=module.TOKEN, stream=sys.argv[2])
    server = await WorkerServer.start(served, config)
    print(server.address, flush=True)
    while True:
        served.may_go_on.set()
        await asyncio.sleep(0)
        served.may_go_on.clear()
        await asyncio.sleep(float(sys.argv[1]))


asyncio.run(main())
