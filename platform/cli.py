"""The command line, `stafette`: one module of `stafette.platform.commands` for each command."""

import argparse
import logging
import sys

from stafette.platform.commands import generate
from stafette.workers.errors import EngineError

COMMANDS = {"generate": generate}


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0, 1 for a failure, 2 for wrong usage, 130 for an interrupt."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(message)s")
    try:
        return int(COMMANDS[arguments.command].run(arguments))
    except EngineError as error:
        print(f"stafette: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stafette", description="A language model, served.")
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument("--log-level", choices=levels, default="warning")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return parser
