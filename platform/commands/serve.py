"""Serve the OpenAI-compatible API: a fleet on Ray, or with --local one engine in this process."""

import argparse
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from stafette.platform.commands import serve_local
from stafette.platform.commands.telling import invite, tell
from stafette.platform.config import Config, api_keys, load
from stafette.platform.flags import add_flags, given
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.running.specs import pool_specs
from stafette.workers import EngineConfig

_OF_THE_FLEET = {"model"}  # of the engine's settings: it stands above the sections


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, help="the YAML file of the fleet")
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting over the file's, such as pools.decode.replicas=2; may be repeated",
    )
    fleet.add_argument(
        "--address",
        help="of the Ray cluster; local: a new one on this machine "
        "(default: RAY_ADDRESS, or the cluster that runs on this machine, or a new one)",
    )
    fleet.add_argument(
        "--detach", action="store_true", help="leave it running on the cluster, and return"
    )
    fleet.add_argument(
        "--api-server-count",
        type=int,
        metavar="N",
        help="frontends; those of a host share the port (frontend.replicas)",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="where each node tells the metrics of all processes there (default: only the API's "
        "/metrics does, of its own node)",
    )
    parser.add_argument(
        "--local", action="store_true", help="one engine in this process, without Ray"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a PEFT adapter, which requests name as their model; may be repeated",
    )
    add_flags(parser, FrontendConfig, "API (a fleet: over the file's `frontend:`)")
    add_flags(parser, EngineConfig, "engine (a fleet: over the file's `engine:`, of every pool)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.local:
        if arguments.config is not None:
            raise InvalidSetting("config", str(arguments.config), "means nothing with --local")
        if arguments.api_server_count is not None:
            remedy = "means nothing with --local, where API and engine are one process"
            raise InvalidSetting("--api-server-count", arguments.api_server_count, remedy)
        return serve_local.run(arguments)
    if arguments.config is None:
        raise InvalidSetting(
            "config", None, "name a YAML file of the fleet (examples/laptop.yaml), or give --local"
        )
    settings = [*arguments.set, *assignments(arguments)]
    return _serve_fleet(load(arguments.config, settings).config, arguments)


def assignments(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the flags of `serve` as `--set` would have them: where they stand in a fleet's file."""
    for name, value in given(arguments, FrontendConfig).items():
        yield f"frontend.{name}={json.dumps(value)}"
    for name, value in given(arguments, EngineConfig).items():
        section = "" if name in _OF_THE_FLEET else "engine."
        yield f"{section}{name}={json.dumps(value)}"
    for adapter in arguments.lora:
        if not all(adapter.partition("=")):
            raise InvalidSetting("--lora", adapter, "must be NAME=DIR")
        yield f"lora_modules.{adapter}"
    if arguments.api_server_count is not None:
        yield f"frontend.replicas={arguments.api_server_count}"
    if arguments.metrics_port is not None:
        yield f"metrics.port={arguments.metrics_port}"


def _serve_fleet(config: Config, arguments: argparse.Namespace) -> int:
    from stafette.platform.serving.launching import RayChoice, deploy, on_ray, remove

    if config.planner.mode != "off":
        pool_specs(config)  # read here, so that a wrong profile is known before anything starts
    verbose = arguments.log_level in ("info", "debug")
    has_keys = api_keys(config.frontend) is not None  # read here, so that a wrong file is known
    choice = RayChoice(address=arguments.address, stays=arguments.detach, log_to_driver=verbose)
    with on_ray(config, choice, tell):
        try:
            url = deploy(config, tell)
            invite(url, config.served_name, has_keys)
            if arguments.detach:
                return 0
            _sleep_until_signal()
        except KeyboardInterrupt:
            pass
        tell("stopping: what is under way is finished first")
        remove(config, tell)
    return 0


def _sleep_until_signal() -> None:
    """Return at SIGTERM, and take no further one; KeyboardInterrupt at SIGINT."""
    told, tell_it = os.pipe()
    # Not an Event: a signal that comes while its lock is held would wait for ever.
    signal.signal(signal.SIGTERM, lambda *_: os.write(tell_it, b"."))
    os.read(told, 1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
