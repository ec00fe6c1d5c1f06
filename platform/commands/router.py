"""Serve the router by itself, or ask a running one why requests went where they went."""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stafette.platform.commands.talking import DEFAULT_URL, KEY_VARIABLE
from stafette.platform.flags import add_flags, given
from stafette.platform.trust import add_trust_arguments, trust_of
from stafette.router.errors import InvalidValue, RouterError
from stafette.router.registry import NAMES
from stafette.router.service.client import RouterClient
from stafette.router.service.config import RouterServiceConfig, Secrets, ServiceConfig
from stafette.router.service.reading import read_as
from stafette.router.service.telling import tell_decisions, tell_workers

if TYPE_CHECKING:
    from stafette.router.service.server import Server

_KEY, _TOKEN = "STAFETTE_ROUTER_KEY", "STAFETTE_ROUTER_TOKEN"
_ROUTER_URL = "http://127.0.0.1:8090"  # of one by itself; frontends of a fleet explain too
_MIN_KEY_BYTES = 16

Ask = Callable[[RouterClient, argparse.Namespace], Awaitable[tuple[dict[str, Any], str]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_serve(actions.add_parser("serve", help="serve the router over HTTP"))
    explain = actions.add_parser("explain", help="print the last decisions")
    explain.add_argument("--last", type=int, default=5, metavar="N", help="default: %(default)s")
    explain.add_argument("--request", metavar="ID", help="only this one")
    workers = actions.add_parser("workers", help="print the registered workers")
    whose = f"of a frontend, or of a router by itself ({_ROUTER_URL})"
    explain.add_argument("--url", default=DEFAULT_URL, help=f"{whose}; default: %(default)s")
    workers.add_argument("--url", default=_ROUTER_URL, help="default: %(default)s")
    for each in (explain, workers):
        each.add_argument("--token-file", metavar="FILE", help=f"or {_TOKEN}, or {KEY_VARIABLE}")
        add_trust_arguments(each)
        each.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    try:
        match arguments.action:
            case "serve":
                return _serve(arguments)
            case "explain":
                return _ask(arguments, _explain)
            case _:
                return _ask(arguments, _workers)
    except RouterError as error:
        print(f"stafette: {error}", file=sys.stderr)
        return 1


def settings(arguments: argparse.Namespace) -> RouterServiceConfig:
    """Return the file's settings, with the flags over them."""
    config = read_as(RouterServiceConfig, read_file(arguments.config) if arguments.config else {})
    config = replace(config, service=replace(config.service, **given(arguments, ServiceConfig)))
    if arguments.policy is not None:
        policy = replace(config.router.policy, name=arguments.policy)
        config = replace(config, router=replace(config.router, policy=policy))
    if arguments.max_target_queue_ms is not None:
        admission = replace(config.admission, max_target_queue_ms=arguments.max_target_queue_ms)
        config = replace(config, admission=admission)
    told = {"peers": tuple(arguments.peer or ()), "address": arguments.gossip_address}
    told["name"] = arguments.name
    return replace(config, gossip=replace(config.gossip, **{k: v for k, v in told.items() if v}))


def read_file(path: str) -> Mapping[str, Any]:
    """Return a YAML or JSON file's content: the one is a part of the other."""
    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's are several lines
        raise InvalidValue("--config", path, f"cannot be read: {reason}") from None
    if not isinstance(found, dict):
        raise InvalidValue("--config", path, "must hold names with their values")
    return found


def secrets_of(arguments: argparse.Namespace, config: RouterServiceConfig) -> Secrets:
    key = _secret("--key-file", arguments.key_file, _KEY)
    if key is None:
        if config.gossip.wanted:
            remedy = f"is needed where there are other routers, the same for all; or set {_KEY}"
            raise InvalidValue("--key-file", None, remedy)
        # Stock workers bring tokens, of which we compute hashes: any key will do, but no other's.
        key = secrets.token_hex(32)
    elif len(key) < _MIN_KEY_BYTES:
        remedy = f"must hold at least {_MIN_KEY_BYTES} characters"
        raise InvalidValue("--key-file", "(secret)", remedy)
    return Secrets(key=key.encode(), token=_token(arguments))


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML or JSON: service, router, admission, events, gossip")
    add(
        "--key-file",
        metavar="FILE",
        help=f"the cluster's secret, as the workers have it; or {_KEY}",
    )
    add("--token-file", metavar="FILE", help=f"what clients must send; or {_TOKEN}")
    add("--policy", choices=NAMES, help="default: kv")
    add("--max-target-queue-ms", type=float, metavar="MS", help="above it requests wait here")
    add("--peer", action="append", metavar="HOST:PORT", help="another router's gossip address")
    add("--gossip-address", metavar="ADDRESS", help="where they hear us, as tcp://0.0.0.0:8091")
    add("--name", help="by which other routers' logs call this one")
    add_flags(parser, ServiceConfig, "service")


def _serve(arguments: argparse.Namespace) -> int:
    config = settings(arguments)
    hidden = secrets_of(arguments, config)
    import uvloop  # here, because --help needs none of this

    uvloop.run(_run(config, hidden))
    return 0


async def _run(config: RouterServiceConfig, hidden: Secrets) -> None:
    from stafette.router.service.app import RouterApp
    from stafette.router.service.listening import open_listener, url_of
    from stafette.router.service.server import Server
    from stafette.router.service.service import RouterService

    with open_listener(config.service.host, config.service.port) as listener:
        service = RouterService(config, hidden)
        server = Server(RouterApp(service, hidden.token))
        url = url_of(listener, config.service.tls_certfile is not None)
        gossip = f", heard at {service.gossip.address}" if service.gossip else ""
        await _until_told(server, listener, f"stafette: router ready at {url}{gossip}")


async def _until_told(server: "Server", listener: socket.socket, ready: str) -> None:
    with server.stopped_by_signals():
        await server.run(listener, lambda: print(ready, flush=True))


def _ask(arguments: argparse.Namespace, ask: Ask) -> int:
    answer, text = asyncio.run(_asked(arguments, ask))
    print(json.dumps(answer, indent=2) if arguments.json else text)
    return 0


async def _asked(arguments: argparse.Namespace, ask: Ask) -> tuple[dict[str, Any], str]:
    token = _token(arguments) or os.environ.get(KEY_VARIABLE)
    tls = trust_of(arguments).context() if arguments.url.startswith("https:") else None
    with contextlib.closing(RouterClient(arguments.url, token, tls=tls)) as client:
        return await ask(client, arguments)


async def _explain(
    client: RouterClient, arguments: argparse.Namespace
) -> tuple[dict[str, Any], str]:
    answer = await client.explain(arguments.last, arguments.request)
    return answer, tell_decisions(answer)


async def _workers(
    client: RouterClient, arguments: argparse.Namespace
) -> tuple[dict[str, Any], str]:
    answer = await client.workers()
    return answer, tell_workers(answer)


def _token(arguments: argparse.Namespace) -> str | None:
    return _secret("--token-file", arguments.token_file, _TOKEN)


def _secret(flag: str, path: str | None, variable: str) -> str | None:
    """Return the file's secret, or else that of the environment."""
    if path is None:
        found = os.environ.get(variable)
        flag = variable
    else:
        try:
            found = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidValue(flag, path, f"cannot be read: {error}") from None
    if found is not None and not found.strip():
        raise InvalidValue(flag, path, "is empty: put the secret there, or leave it out")
    return None if found is None else found.strip()
