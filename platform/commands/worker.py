"""Ask one worker of a running fleet for something: another role, to drain, its statistics."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from stafette.platform.commands.talking import DEFAULT_URL, Asker, AskingFailed
from stafette.platform.commands.telling import tell
from stafette.platform.config import MADE_TOKEN, TOKEN_VARIABLE, Config, load
from stafette.platform.frontend.errors import InvalidSetting

_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, summary in (
        ("role", "give it another role; what is under way goes on"),
        ("drain", "let it take nothing new, and move what it has to others"),
        ("resume", "let it take requests again"),
        ("stats", "print what it counts"),
    ):
        own = actions.add_parser(action, help=summary, description=summary.capitalize() + ".")
        own.add_argument("name", help="as `stafette status` shows it")
        if action == "role":
            own.add_argument("role", choices=["prefill", "decode", "both"])
        own.add_argument("--url", default=DEFAULT_URL, help="of a frontend (default: %(default)s)")
        own.add_argument("--key", help="API key (default: STAFETTE_API_KEY)")
        own.add_argument(
            "--config",
            type=Path,
            help=f"the fleet's YAML file, for the cluster's token (default: {TOKEN_VARIABLE})",
        )


def run(arguments: argparse.Namespace) -> int:
    loaded = load(arguments.config)
    if loaded.token_origin == MADE_TOKEN:
        remedy = f"is needed to talk to workers: set {TOKEN_VARIABLE}, or name the --config with it"
        raise InvalidSetting("cluster.token", None, remedy)
    address = _address(Asker(arguments.url, arguments.key), arguments.name)
    answer = asyncio.run(_ask(loaded.config, arguments.name, address, *_question(arguments)))
    if arguments.action == "stats":
        print(json.dumps(answer, indent=2))
    elif arguments.action == "role":
        tell(f"{arguments.name} was {answer}, and is {arguments.role} now")
    else:
        does = "drains" if arguments.action == "drain" else "takes requests"
        tell(f"{arguments.name} {does}; it has {answer} requests under way")
    return 0


def _question(arguments: argparse.Namespace) -> tuple[str, object]:
    match arguments.action:
        case "role":
            return "set_role", arguments.role
        case "stats":
            return "stats", None
        case action:
            return "drain", action == "drain"


def _address(asker: Asker, name: str) -> str:
    workers = asker.get("/v1/workers")["data"]
    for worker in workers:
        if worker["name"] == name:
            return str(worker["address"])
    known = ", ".join(worker["name"] for worker in workers) or "none"
    raise AskingFailed("worker", name, f"is not in the fleet of {asker.url}; there are: {known}")


async def _ask(config: Config, name: str, address: str, operation: str, payload: object) -> Any:
    from stafette.platform.serving.assembly import service_config
    from stafette.workers.service.client import WorkerClient

    client = await WorkerClient.connect(name, address, "command", service_config(config))
    try:
        return await client.ask(operation, payload, _TIMEOUT_S)
    finally:
        await client.close()
