"""Mock workers in a process of their own, counted and traced as a fleet's are.

python mock_process.py '{"config": {...}, "workers": {"d0": "decode", ...}, "ttl_s": 30}'

Prints the addresses by name when they serve.
"""

import asyncio
import json
import signal
import sys
from dataclasses import replace

from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.platform.config import load_mapping
from stafette.platform.observability.tracing import open_tracing
from stafette.platform.observability.workers import WorkerMetrics
from stafette.platform.serving.assembly import cache_key, node_page, service_config
from stafette.workers.mocker.config import DEFAULT_FLAGS, MockerConfig
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.worker import MockWorker
from stafette.workers.service.server import WorkerServer


async def main() -> None:
    told = json.loads(sys.argv[1])
    config = load_mapping(told["config"], "test", {}).config
    agent = config.transfer.make(name="mock", token=config.token, transports=("tcp",))
    host, addresses, closing = MockHost(agent), {}, []
    flags = replace(DEFAULT_FLAGS, model=config.model, prefix_cache_key=cache_key(config))
    for name, role in told["workers"].items():
        mocker = MockerConfig(
            name=name,
            role=role,
            engine=flags,
            profile=Profile(step_ms=5.0),
            p2p=P2pConfig(lease_ttl_s=told["ttl_s"]),
        )
        worker = MockWorker(mocker, host)
        page = node_page(config, name, role)
        page.process.add(WorkerMetrics(config.served_name, worker.measured).collect)
        await page.start()
        tracing = open_tracing(config.tracing, name, role)
        server = await WorkerServer.start(worker, service_config(config), tracing)
        addresses[name] = server.address
        closing += [page.close, server.stop, worker.close]
        if tracing is not None:
            worker.imports.on_pulled = tracing.pulled
            closing.append(tracing.close)
    print(json.dumps(addresses), flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    for close in closing:
        await close()
    host.close()


asyncio.run(main())
