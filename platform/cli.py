"""The command line, `stafette`: one module of `stafette.platform.commands` for each command."""

import argparse
import logging
import os
import signal
import sys

from stafette.kvtransfer.errors import KvTransferError
from stafette.platform.commands import (
    bench,
    chat,
    config,
    estimate,
    generate,
    kv_size,
    planner,
    preheat,
    profiling_command,
    recommend,
    router,
    serve,
    simulate,
    status,
    tune,
    worker,
)
from stafette.platform.extras import extra_with
from stafette.workers.errors import EngineError

COMMANDS = {
    "bench": bench,
    "chat": chat,
    "config": config,
    "estimate": estimate,
    "generate": generate,
    "kv-size": kv_size,
    "planner": planner,
    "preheat": preheat,
    "profile": profiling_command,
    "recommend": recommend,
    "router": router,
    "serve": serve,
    "simulate": simulate,
    "status": status,
    "tune": tune,
    "worker": worker,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0, 1 for a failure, 2 for wrong usage, or as a signal would."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(message)s")
    try:
        return int(COMMANDS[arguments.command].run(arguments))
    except (EngineError, KvTransferError) as error:
        print(f"stafette: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        return _tell_missing(error, arguments.command)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has left; nothing may be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _tell_missing(error: ModuleNotFoundError, command: str) -> int:
    package = (error.name or "").partition(".")[0]
    extra = extra_with(package)
    if extra is None:
        raise error
    remedy = f"pip install 'stafette[{extra}]'"
    print(f"stafette: {command} needs {package}, which is not installed: {remedy}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stafette", description="A language model, served.")
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument("--log-level", choices=levels, default="warning")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return parser
