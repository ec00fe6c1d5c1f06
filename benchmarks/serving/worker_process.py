"""Whole workers with the embedded model, each in a process of its own.

    python worker_process.py

Reads one line for each worker, as JSON: {"name", "role", "token", "engine": {...}, ...}. All are
forked off this process, which has imported what takes long. Tells {"name", "pid", "address"} when
one is ready, {"pid", "status"} when one has ended. With {"name", "token", "asks": address, "count"}
it is a frontend that has asked a worker for so many long answers, and is ready when all have begun;
with {"name", "fleet", ...} one with HTTP (http_front.py).
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any

from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.tiers.config import HostConfig, TiersConfig
from stafette.workers.config import EngineConfig
from stafette.workers.request import OutputDelta, Request
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.engine_worker import EngineWorker, WorkerConfig
from stafette.workers.service.frames import Order
from stafette.workers.service.life import DrainConfig, live
from stafette.workers.service.server import WorkerServer
from stafette.workers.service.serving import Operation

FLAGS = {
    "max_num_seqs": 16,
    "max_model_len": 1024,
    "num_kv_blocks": 512,
    "max_num_batched_tokens": 128,
    "num_threads": 1,
    "prefix_cache_key": "the cluster's key",
}
SERVICE: dict[str, Any] = {"beat_s": 0.2, "silence_s": 20.0}
_PR_SET_PDEATHSIG = 1


class SlowWorker(EngineWorker):
    """Its steps may be told to take longer, so that something can be broken meanwhile."""

    step_s = 0.0

    def slow_down(self) -> None:
        runner = self.engine.engine.executor.runner
        forward = runner.forward

        def slow(inputs: Any) -> Any:
            time.sleep(self.step_s)
            return forward(inputs)

        runner.forward = slow  # type: ignore[method-assign]

    def operations(self) -> Mapping[str, Operation]:
        async def set_step(seconds: object) -> object:
            assert isinstance(seconds, float)
            self.step_s = seconds
            return None

        return {**super().operations(), "set_step": set_step}


async def work(told: dict[str, Any]) -> bool:
    token = told["token"].encode()
    config = WorkerConfig(
        name=told["name"],
        role=told["role"],
        engine=EngineConfig(**(FLAGS | told.get("engine", {}))),
        agent=AgentConfig(name=told["name"], token=token),
        p2p=P2pConfig(**told.get("p2p", {})),
        loras=told.get("loras", {}),
        tiers=_tiers(told.get("host_blocks", 0)),
    )
    worker = await SlowWorker.start(config)
    assert isinstance(worker, SlowWorker)
    worker.slow_down()
    service = ServiceConfig(token=token, **(SERVICE | told.get("service", {})))
    server = await WorkerServer.start(worker, service)
    tell({"name": worker.name, "pid": os.getpid(), "address": server.address})
    return await live(worker, server, DrainConfig(**told.get("drain", {})))


def _tiers(host_blocks: int) -> TiersConfig | None:
    if not host_blocks:
        return None
    return TiersConfig(host=HostConfig(num_blocks=host_blocks), save_on_close=False)


async def front(told: dict[str, Any]) -> bool:
    from benchmarks.serving.http_front import serve  # here: nobody else needs HTTP

    await serve(told, lambda url: tell({"name": told["name"], "pid": os.getpid(), "address": url}))
    return True


async def ask(told: dict[str, Any]) -> bool:
    config = ServiceConfig(token=told["token"].encode(), **SERVICE)
    client = await WorkerClient.connect(told["worker"], told["asks"], told["name"], config)
    streams = [client.generate(_long_order(number)) for number in range(told["count"])]
    await asyncio.gather(*(anext(stream) for stream in streams))
    tell({"name": told["name"], "pid": os.getpid(), "address": ""})
    await asyncio.gather(*map(_read, streams))
    return True


async def _read(stream: AsyncGenerator[OutputDelta, None]) -> None:
    async for _ in stream:
        pass


def _long_order(number: int) -> Order:
    params = SamplingParams(max_tokens=900, ignore_eos=True)
    prompt = [500 + number] * 40
    request = Request(
        request_id=f"long-{number}", prompt_token_ids=prompt, params=params, detokenize=False
    )
    return Order(request)


def tell(what: dict[str, object]) -> None:
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
        told = json.loads(line)
        empty = asyncio.run(_life(told))
    finally:
        os._exit(0 if empty else 1)


def _life(told: dict[str, Any]) -> Coroutine[Any, Any, bool]:
    return front(told) if "fleet" in told else ask(told) if "asks" in told else work(told)


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
