"""One engine in this process behind the API: no Ray, no other process."""

import argparse
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from stafette.platform.commands.telling import invite, tell
from stafette.platform.config import api_keys
from stafette.platform.flags import given
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.keys import ApiKey
from stafette.workers import EngineConfig

if TYPE_CHECKING:
    from stafette.workers import AsyncEngine
    from stafette.workers.engine import Engine


def run(arguments: argparse.Namespace) -> int:
    frontend = FrontendConfig(**given(arguments, FrontendConfig))
    flags = given(arguments, EngineConfig)
    loras = [_lora(each) for each in arguments.lora]
    if loras:
        flags["enable_lora"] = True
    import uvloop  # here, because --help needs none of this

    uvloop.run(_serve(frontend, EngineConfig(**flags), loras))
    return 0


def _lora(given: str) -> tuple[str, str]:
    name, _, path = given.partition("=")
    if not name or not path:
        raise InvalidSetting("--lora", given, "must be NAME=DIR")
    return name, path


async def _serve(config: FrontendConfig, flags: EngineConfig, loras: list[tuple[str, str]]) -> None:
    from stafette.platform.frontend.server import listen

    keys = api_keys(config)
    with listen(config) as listener:  # first: a port in use is known before a model is loaded
        engine = await _engine(flags, loras)
        try:
            await _run(engine, config, keys, listener)
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


async def _run(
    engine: "AsyncEngine",
    config: FrontendConfig,
    keys: tuple[ApiKey, ...] | None,
    listener: socket.socket,
) -> None:
    from stafette.platform.frontend.app import Frontend
    from stafette.platform.frontend.local import LocalGenerator
    from stafette.platform.frontend.served import Served
    from stafette.platform.frontend.server import Server, address

    core = engine.engine
    served = Served.of(config, core.config.model, core.tokenizer, core.max_model_len)
    server = Server(Frontend(served, LocalGenerator(engine), config, keys))
    url = address(config, listener)
    with server.stopped_by_signals():
        await server.run(listener, lambda: invite(url, served.name, keys is not None))
