"""Show, check or describe the settings of a fleet."""

import argparse
import json
from pathlib import Path

from stafette.platform.commands.telling import tell
from stafette.platform.config import Config, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("show", "print every setting with its value and where that comes from"),
        ("check", "say what is wrong, or that nothing is"),
    ):
        action = actions.add_parser(name, help=summary, description=summary.capitalize() + ".")
        action.add_argument("config", nargs="?", type=Path, help="YAML file (default: none)")
        action.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a setting over the file's; may be repeated",
        )
    summary = "print the JSON schema of the YAML file"
    actions.add_parser("schema", help=summary, description=summary.capitalize() + ".")


def run(arguments: argparse.Namespace) -> int:
    from stafette.platform.config_showing import schema, show
    from stafette.platform.planner.running.specs import pool_specs

    if arguments.action == "schema":
        print(json.dumps(schema(Config), indent=2))
        return 0
    loaded = load(arguments.config, arguments.set)
    if arguments.action == "show":
        print(show(loaded))
    else:
        if loaded.config.planner.mode != "off":
            pool_specs(loaded.config)
        pools = ", ".join(f"{n} x {p.replicas}" for n, p in loaded.config.pools.items())
        tell(f"{arguments.config or 'the defaults'}: nothing is wrong; pools: {pools}")
    return 0
