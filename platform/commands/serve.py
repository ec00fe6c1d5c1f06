"""Serve the OpenAI-compatible API."""

import argparse
import json
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from stafette.platform.flags import add_flags, given
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.keys import ApiKey, read_key_file, read_keys
from stafette.workers import EngineConfig

if TYPE_CHECKING:
    from stafette.workers import AsyncEngine
    from stafette.workers.engine import Engine

_KEYS_VARIABLE = "STAFETTE_API_KEYS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--local", action="store_true", help="one engine in this process, without Ray"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a PEFT adapter, which requests name as their model; may be given several times",
    )
    add_flags(parser, FrontendConfig, "API")
    add_flags(parser, EngineConfig, "engine")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.local:
        raise InvalidSetting("--local", False, "is the only way to serve so far: give it")
    frontend = FrontendConfig(**given(arguments, FrontendConfig))
    flags = given(arguments, EngineConfig)
    loras = [_lora(each) for each in arguments.lora]
    if loras:
        flags["enable_lora"] = True
    import uvloop  # here, because --help needs none of this

    uvloop.run(_serve(frontend, EngineConfig(**flags), loras))
    return 0


def api_keys(config: FrontendConfig) -> tuple[ApiKey, ...] | None:
    """Return the keys of the file, or else those of the environment; None: there are none."""
    if config.api_keys is not None:
        return read_key_file(config.api_keys)
    given = os.environ.get(_KEYS_VARIABLE)
    if given is None:
        return None
    keys = read_keys(given)
    if not keys:
        raise InvalidSetting(_KEYS_VARIABLE, given, "holds no key: write NAME KEY, or unset it")
    return keys


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
    _tell(f"loading {flags.model}")
    engine = await AsyncEngine.start(flags)
    try:
        for name, path in loras:
            await engine.call(partial(_load, name, path))
    except BaseException:
        await engine.close()
        raise
    _tell(f"loaded in {time.monotonic() - began:.1f} s")
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
        await server.run(listener, lambda: _invite(url, served.name, keys is not None))


def _invite(url: str, model: str, has_keys: bool) -> None:
    """Say that it is ready, with a line to paste."""
    key = "-H 'Authorization: Bearer KEY' " if has_keys else ""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    _tell(f"ready at {url}/v1; try")
    print(
        f"  curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\", flush=True
    )
    print(f"    -d '{body}'", flush=True)


def _tell(text: str) -> None:
    print(f"stafette: {text}", flush=True)
