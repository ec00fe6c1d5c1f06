"""Ask one worker of a running fleet for something: another role, to drain, its statistics."""

import argparse
import asyncio
import json

from stafette.platform.commands.reaching import Workers, add_reaching_arguments
from stafette.platform.commands.telling import tell

_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, summary in (
        ("role", "give it another role; what is under way goes on"),
        ("drain", "let it take nothing new, and move what it has to others"),
        ("retire", "drain it, and let Ray Serve put a new one in its place"),
        ("resume", "let it take requests again"),
        ("stats", "print what it counts"),
    ):
        own = actions.add_parser(action, help=summary, description=summary.capitalize() + ".")
        own.add_argument("name", help="as `stafette status` shows it")
        if action == "role":
            own.add_argument("role", choices=["prefill", "decode", "both"])
        add_reaching_arguments(own)


def run(arguments: argparse.Namespace) -> int:
    workers = Workers(arguments)
    address, question = workers.address(arguments.name), _question(arguments)
    (answer,) = asyncio.run(workers.ask(arguments.name, address, [question], _TIMEOUT_S))
    if arguments.action == "stats":
        print(json.dumps(answer, indent=2))
    elif arguments.action == "role":
        tell(f"{arguments.name} was {answer}, and is {arguments.role} now")
    else:
        does = "takes requests" if arguments.action == "resume" else "drains"
        tell(f"{arguments.name} {does}; it has {answer} requests under way")
    return 0


def _question(arguments: argparse.Namespace) -> tuple[str, object]:
    match arguments.action:
        case "role":
            return "set_role", arguments.role
        case "stats":
            return "stats", None
        case "retire":
            return "retire", None
        case action:
            return "drain", action == "drain"
