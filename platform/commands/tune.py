"""Find engine flags for a load: start servers, measure them, keep what helps, and say why."""

import argparse
from pathlib import Path

from stafette.platform.bench.load import Lengths
from stafette.platform.bench.tuning.knobs import KNOBS
from stafette.platform.bench.tuning.objectives import OBJECTIVES
from stafette.platform.commands.talking import KEY_VARIABLE
from stafette.platform.flags import add_flags
from stafette.platform.trust import add_trust_arguments
from stafette.workers import EngineConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--name", default="tune", help="of the results (default: %(default)s)")
    add("--preset", choices=["loop", "ablation"], default="loop", help="default: %(default)s")
    add("--objective", choices=list(OBJECTIVES), default="throughput", help="default: %(default)s")
    add("--goodput", nargs="+", default=[], metavar="NAME:MS", help="with --objective goodput")
    names = " ".join(knob.name for knob in KNOBS)
    add("--knobs", nargs="+", metavar="FLAG", help=f"of the loop (default: {names})")
    add("--margin", type=float, default=0.03, help="smaller gains are none (default: %(default)s)")
    add("--quick", action="store_true", help="a small load and few values: minutes on a CPU")
    lengths = Lengths()
    load = parser.add_argument_group("load")
    load.add_argument("--isl", type=int, help=f"default: {lengths.isl}; --quick: 64")
    load.add_argument("--osl", type=int, help=f"default: {lengths.osl}; --quick: 16")
    load.add_argument("--concurrency", type=int, help="requests at once (default: 32; --quick: 8)")
    load.add_argument("--requests", type=int, help="of each trial (default: three rounds)")
    load.add_argument("--prefix-ratio", type=float, help="share of prompts that others share")
    load.add_argument("--prefixes", type=int, default=20, help="different beginnings")
    server = parser.add_argument_group("server (default: one engine here, as serve --local)")
    server.add_argument(
        "--restart-command",
        metavar="COMMAND",
        help="starts the server, with {flags} where they belong; ended by SIGTERM",
    )
    server.add_argument("--url", help="of what it starts")
    server.add_argument("--served-model", help="its model (default: the only one)")
    server.add_argument("--key", help=f"API key (default: {KEY_VARIABLE})")
    server.add_argument("--start-s", type=float, default=600.0, help="until it answers")
    add_trust_arguments(parser)
    add("--timeout-s", type=float, default=600.0, help="of one answer (default: %(default)s)")
    add("--output-dir", type=Path, default=Path("results"), help="default: %(default)s")
    add("--no-report", action="store_true", help="no charts and no page")
    add_flags(parser, EngineConfig, "engine: what stays as it is told")


def run(arguments: argparse.Namespace) -> int:
    from stafette.platform.commands.tuning import tune

    return tune(arguments)
