"""Load servers that speak OpenAI's API, and say how fast they answer: run, compare, report."""

import argparse
from pathlib import Path
from typing import get_args

from stafette.platform.bench.load import Lengths
from stafette.platform.bench.shapes.concurrency import DEFAULT_CONCURRENCIES
from stafette.platform.bench.shapes.drawing import Arrivals
from stafette.platform.bench.shapes.prefixes import DEFAULT_RATIOS
from stafette.platform.commands.talking import KEY_VARIABLE
from stafette.platform.commands.telling import tell
from stafette.platform.trust import add_trust_arguments

_OUT = Path("results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_run(actions.add_parser("run", help="measure endpoints at several loads"))
    compare = actions.add_parser("compare", help="is B another than A? with confidence intervals")
    compare.add_argument("a", type=Path, metavar="A", help="a folder of results, or of a label")
    compare.add_argument("b", type=Path, metavar="B")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write a page of both")
    report = actions.add_parser("report", help="print, draw and write a page of results again")
    report.add_argument("folder", type=Path, help="as results/NAME")


def run(arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "run":
            from stafette.platform.commands.benching import run_benchmark

            return run_benchmark(arguments)
        case "compare":
            return _compare(arguments)
        case _:
            return _report(arguments.folder)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--name", required=True, help="of the results: letters, digits, - and _")
    add(
        "--endpoint",
        action="append",
        default=[],
        metavar="LABEL=URL",
        help="may be repeated; within a cluster the scheme may be left out",
    )
    add("--model", help="default: the only one that is served")
    add("--isl", type=int, default=Lengths().isl, help="tokens of a prompt (default: %(default)s)")
    add("--std", type=int, default=Lengths().std, help="their deviation (default: %(default)s)")
    add("--osl", type=int, default=Lengths().osl, help="tokens of an answer (default: %(default)s)")
    add("--requests", type=int, help="of each level (default: by the level)")
    add("--warmup", type=int, default=2, help="requests before (default: %(default)s)")
    add("--seed", type=int, help="of prompts and times (default: at random, kept with the plan)")
    add("--api", choices=["chat", "completions"], default="chat")
    add("--no-stream", action="store_true", help="whole answers: no TTFT, TPOT and ITL then")
    add("--no-ignore-eos", action="store_true", help="answers may end before --osl")
    add("--backend", choices=["auto", "aiperf", "builtin"], default="auto")
    add("--tokenizer", help="a directory or file of the model's (default: the server's /tokenize)")
    add("--key", help=f"API key (default: {KEY_VARIABLE})")
    add_trust_arguments(parser)
    add("--timeout-s", type=float, default=600.0, help="of one answer (default: %(default)s)")
    add("--output-dir", type=Path, default=_OUT, help="default: %(default)s")
    add("--no-report", action="store_true", help="no charts and no page")
    _add_shapes(parser)
    told = parser.add_argument_group("goals and costs")
    add = told.add_argument
    add("--goodput", nargs="+", default=[], metavar="NAME:MS", help="as ttft:500 tpot:30 e2e:9000")
    add("--gpus", type=int, default=1, help="of each endpoint (default: %(default)s)")
    add("--hardware", help="a name as H100: its price an hour is that of the data sheet")
    add("--price", type=float, help="US dollars an hour of a GPU")


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("load: how requests come").add_argument
    levels = " ".join(map(str, DEFAULT_CONCURRENCIES))
    add("--concurrencies", type=int, nargs="+", help=f"default: CONCURRENCIES, or {levels}")
    add("--rates", type=float, nargs="+", help="requests a second")
    add("--arrivals", choices=get_args(Arrivals), help="with --rates (default: poisson)")
    add("--burstiness", type=float, help="gamma's shape, 1 is Poisson (with --arrivals gamma)")
    add("--sessions", type=int, nargs="+", help="conversations at once")
    add("--turns", type=int, help="of a session (default: 5)")
    add("--turn-tokens", type=int, help="that a turn adds (default: 100)")
    add("--think-s", type=float, help="mean between answer and next turn (default: 0)")
    ratios = " ".join(map(str, DEFAULT_RATIOS))
    add("--prefix-ratios", type=float, nargs="*", help=f"shared shares (given alone: {ratios})")
    add("--prefixes", type=int, help="different beginnings (default: 20)")
    add("--concurrency", type=int, help="with --prefix-ratios (default: 20)")
    add("--trace", help="a file: Mooncake's JSONL, or Azure's CSV")
    add("--speedup", type=float, nargs="+", help="of the trace (default: 1)")
    add("--max-isl", type=int, help="leave longer requests of the trace out")
    add("--max-osl", type=int, help="cut longer answers of the trace")


def _compare(arguments: argparse.Namespace) -> int:
    from stafette.platform.bench.comparing import compare
    from stafette.platform.bench.measured import read_measured
    from stafette.platform.bench.page import write_comparison
    from stafette.platform.bench.tables import difference_table

    a, b = read_measured(arguments.a), read_measured(arguments.b)
    found = compare(a, b)
    print(f"A is {arguments.a}, B is {arguments.b}")
    print(difference_table(found))
    if arguments.html is not None:
        write_comparison(arguments.html, {"A": a, "B": b}, found)
        tell(f"the page is {arguments.html}")
    return 0


def _report(folder: Path) -> int:
    from stafette.platform.commands.benching import tell_results, write_report

    tell_results(folder)
    write_report(folder)
    return 0
