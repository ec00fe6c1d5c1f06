"""A server on a Ray of its own, measured by overhead.py: `ray_server.py CONTENDER STEP_S`.

ray               Serve's proxy, an ingress replica, a streaming handle, an engine replica
stafette-on-ray   our frontend and a worker without a model, as replicas

Says {"port", "pids"} when it serves, and ends when its input does.
"""

import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import psutil
import ray
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from ray import serve
from ray.serve import Deployment
from ray.serve.handle import DeploymentHandle

from benchmarks.serving.frontend_server import StepEngine, step_request
from benchmarks.serving.step_worker import BLOCK_SIZE, MAX_MODEL_LEN, MODEL, StepWorker
from stafette.platform.config import Config, load_mapping
from stafette.platform.frontend.generator import Hints
from stafette.platform.serving.assembly import cache_key, service_config
from stafette.platform.serving.frontend_replica import FrontendReplica
from stafette.platform.serving.worker_replica import WorkerReplica
from stafette.workers.service.server import WorkerServer

_ACTOR = {"num_cpus": 0.1}
_MANY = 1_000
_PROXY = "ProxyActor"
app = FastAPI()


class Body(BaseModel):
    model: str
    messages: list[dict[str, str]]
    max_tokens: int
    stream: bool


class Engine:
    """The engine of the other contenders, asked by a handle."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._engine: StepEngine | None = None

    async def generate(self, max_tokens: int) -> AsyncIterator[str]:
        if self._engine is None:  # it steps in the loop that asks it
            self._engine = StepEngine(self._step_s)
        async for deltas in self._engine.stream(step_request(max_tokens), Hints()):
            for delta in deltas:
                yield delta.text


@serve.ingress(app)
class Ingress:
    def __init__(self, engine: DeploymentHandle[Any]) -> None:
        self._engine: Any = engine.options(stream=True)

    @app.post("/v1/chat/completions")
    async def chat(self, body: Body) -> StreamingResponse:
        return StreamingResponse(self._events(body.max_tokens), media_type="text/event-stream")

    async def _events(self, max_tokens: int) -> AsyncIterator[str]:
        async for text in self._engine.generate.remote(max_tokens):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            chunk = {"object": "chat.completion.chunk", "model": "mock", "choices": [choice]}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"


class StepReplica(WorkerReplica):
    """A worker of ours, as it is deployed, but for its engine."""

    def __init__(self, config: Config, pool: str, step_s: float) -> None:
        self._step_s = step_s
        super().__init__(config, pool)

    def check_health(self) -> None:
        pass

    async def _start(self) -> None:
        config = self._config
        self._step = StepWorker(self._name, self._step_s, cache_key(config), config.token)
        service = service_config(self._config, self._host)
        self._server = await WorkerServer.start(self._step, service)

    async def _end(self) -> None:
        await self._server.stop()


def start_ray(step_s: float) -> int:
    port = _free_port()
    serve.start(http_options={"port": port})
    engine = _deployment(Engine).bind(step_s)
    serve.run(_deployment(Ingress).bind(engine), route_prefix="/")
    return port


def start_ours(step_s: float) -> int:
    port = _free_port()
    tree = {
        "model": MODEL,
        "engine": {"max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE},
        "pools": {"aggregated": {"num_cpus": 0.1}},
        "frontend": {"port": port, "num_cpus": 0.1, "served_model_name": ["mock"]},
        "cluster": {"token": "the token of a benchmark's cluster"},
    }
    config = load_mapping(tree, "tree").config
    serve.start(proxy_location="Disabled")
    pool = "aggregated"
    worker = _deployment(StepReplica).bind(config.for_workers(pool), pool, step_s)
    front = _deployment(FrontendReplica).bind(config.for_frontends(), worker)
    serve.run(front, route_prefix=None)
    return port


def _deployment(kind: type) -> Deployment:
    options = serve.deployment(ray_actor_options=_ACTOR, max_ongoing_requests=_MANY)
    deployment: Deployment = options(kind)
    return deployment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _on_the_way() -> list[int]:
    """Return replicas and proxies: Ray names its processes by what they are."""
    found = []
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        if title.startswith("ray::ServeReplica") or title.startswith(f"ray::{_PROXY}"):
            found.append(process.pid)
    return found


STARTS = {"ray": start_ray, "stafette-on-ray": start_ours}


def main(contender: str, step_s: float) -> None:
    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
    ray.init(
        "local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        object_store_memory=100 << 20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        port = STARTS[contender](step_s)
        print(json.dumps({"port": port, "pids": _on_the_way()}), flush=True)
        sys.stdin.read()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
