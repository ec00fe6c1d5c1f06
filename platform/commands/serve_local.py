"""One engine in this process behind the API: no Ray, no other process."""

import argparse
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stafette.platform import logs
from stafette.platform.commands.telling import invite, tell
from stafette.platform.config import api_keys
from stafette.platform.flags import given
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.keys import ApiKey
from stafette.platform.observability.config import MetricsConfig
from stafette.workers import EngineConfig

_PROCESS = "local"  # how logs and metrics call it

if TYPE_CHECKING:
    from stafette.platform.observability.page import Page
    from stafette.workers import AsyncEngine
    from stafette.workers.engine import Engine
    from stafette.workers.weights.advised_sampling import Advice


def run(arguments: argparse.Namespace) -> int:
    frontend = FrontendConfig(**given(arguments, FrontendConfig))
    flags = given(arguments, EngineConfig)
    loras = [_lora(each) for each in arguments.lora]
    if loras:
        flags["enable_lora"] = True
    metrics = MetricsConfig(port=arguments.metrics_port)
    logs.set_up(arguments.log_level, _PROCESS)
    import uvloop  # here, because --help needs none of this

    uvloop.run(_serve(frontend, EngineConfig(**flags), loras, metrics))
    return 0


def _lora(given: str) -> tuple[str, str]:
    name, _, path = given.partition("=")
    if not name or not path:
        raise InvalidSetting("--lora", given, "must be NAME=DIR")
    return name, path


async def _serve(
    config: FrontendConfig,
    flags: EngineConfig,
    loras: list[tuple[str, str]],
    metrics: MetricsConfig,
) -> None:
    from stafette.platform.frontend.server import listen
    from stafette.workers.weights.advised_sampling import advised_sampling

    keys = api_keys(config)
    advice = advised_sampling(config.generation_config, flags.model)
    with listen(config) as listener:  # first: a port in use is known before a model is loaded
        engine = await _engine(flags, loras)
        try:
            async with _page(engine, config, metrics) as page:
                await _run(engine, config, keys, listener, page, advice)
        finally:
            await engine.close()


async def _engine(flags: EngineConfig, loras: list[tuple[str, str]]) -> "AsyncEngine":
    from stafette.workers import AsyncEngine

    began = time.monotonic()
    tell(f"loading {flags.model}")
    engine = await AsyncEngine.start(flags)
    try:
        for name, path in loras:
            await engine.call(partial(_load, name, path))
    except BaseException:
        await engine.close()
        raise
    tell(f"loaded in {time.monotonic() - began:.1f} s")
    return engine


def _load(name: str, path: str, engine: "Engine") -> None:
    engine.adapters.load(name, path)


@asynccontextmanager
async def _page(
    engine: "AsyncEngine", config: FrontendConfig, metrics: MetricsConfig
) -> "AsyncIterator[Page]":
    """Tell what is counted at the API's own /metrics, and at a port of its own where it is set."""
    from stafette.platform.observability.node import NodePage
    from stafette.platform.observability.process import ProcessMetrics
    from stafette.platform.observability.workers import engine_metrics, time_metrics

    core, process = engine.engine, ProcessMetrics(_PROCESS, _PROCESS)
    name = (*config.served_model_name, Path(core.config.model).name or core.config.model)[0]
    process.add(lambda: engine_metrics(name, engine.stats(), core.step_seconds))
    process.add(lambda: time_metrics(name, core.times))
    with TemporaryDirectory(prefix="stafette-") as folder:
        page = NodePage(process, metrics, Path(folder))
        await page.start()
        try:
            yield page
        finally:
            await page.close()


async def _run(
    engine: "AsyncEngine",
    config: FrontendConfig,
    keys: tuple[ApiKey, ...] | None,
    listener: socket.socket,
    page: "Page",
    advice: "Advice",
) -> None:
    from stafette.platform.frontend.app import Frontend
    from stafette.platform.frontend.local import LocalGenerator
    from stafette.platform.frontend.served import Served
    from stafette.platform.frontend.server import Server, address
    from stafette.workers.garbage import settle

    core = engine.engine
    model = core.config.model
    served = Served.of(config, model, core.tokenizer, core.max_model_len, advice)
    server = Server(Frontend(served, LocalGenerator(engine), config, keys, page))
    url = address(config, listener)
    settle()
    with server.stopped_by_signals():
        await server.run(listener, lambda: invite(url, served.name, keys is not None))
