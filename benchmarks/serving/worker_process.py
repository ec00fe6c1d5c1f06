"""Whole workers with the embedded model, each in a process of its own.

    python worker_process.py

Reads one line for each worker, as JSON: {"name", "role", "engine": {...}, ...}. All are forked off
this process, which has imported what takes long. Tells {"name", "pid", "address"} when one is
ready, {"pid", "status"} when one has ended.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import time

from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.workers.config import EngineConfig
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.engine_worker import EngineWorker, WorkerConfig
from stafette.workers.service.life import DrainConfig, live
from stafette.workers.service.server import WorkerServer

FLAGS = {
    "max_num_seqs": 16,
    "max_model_len": 1024,
    "num_kv_blocks": 512,
    "max_num_batched_tokens": 128,
    "num_threads": 1,
    "prefix_cache_key": "the cluster's key",
}
_PR_SET_PDEATHSIG = 1


class SlowWorker(EngineWorker):
    """Its steps may be told to take longer, so that a test can break something meanwhile."""

    step_s = 0.0

    def slow_down(self) -> None:
        runner = self.engine.engine.executor.runner
        forward = runner.forward

        def slow(inputs):
            time.sleep(self.step_s)
            return forward(inputs)

        runner.forward = slow

    def operations(self):
        async def set_step(seconds):
            self.step_s = seconds

        return {**super().operations(), "set_step": set_step}


async def work(told: dict) -> bool:
    token = told["token"].encode()
    config = WorkerConfig(
        name=told["name"],
        role=told["role"],
        engine=EngineConfig(**(FLAGS | told.get("engine", {}))),
        agent=AgentConfig(name=told["name"], token=token),
        p2p=P2pConfig(**told.get("p2p", {})),
    )
    worker = await SlowWorker.start(config)
    worker.slow_down()
    service = ServiceConfig(token=token, beat_s=0.2, silence_s=3.0, stop_timeout_s=1.0)
    server = await WorkerServer.start(worker, service)
    tell({"name": worker.name, "pid": os.getpid(), "address": server.address})
    return await live(worker, server, DrainConfig(**told.get("drain", {})))


def tell(what: dict) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def fork(line: str, parent: int) -> None:
    if os.fork():
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    empty = False
    try:
        empty = asyncio.run(work(json.loads(line)))
    finally:
        os._exit(0 if empty else 1)


def reap(*_: object) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        tell({"pid": pid, "status": os.waitstatus_to_exitcode(status)})


def main() -> None:
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        fork(line, os.getpid())


if __name__ == "__main__":
    main()
