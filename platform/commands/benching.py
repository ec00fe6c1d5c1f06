"""What `stafette bench run` is told, made into a plan, and the plan carried out."""

import argparse
import asyncio
import os
import random
import shlex
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stafette.platform.bench import aiperf
from stafette.platform.bench.backends import Backend as Measuring
from stafette.platform.bench.backends import Builtin
from stafette.platform.bench.checking import Served
from stafette.platform.bench.client import Client, ClientConfig
from stafette.platform.bench.endpoints import PLOTS, checked_name, read_endpoints
from stafette.platform.bench.load import Lengths, Shape
from stafette.platform.bench.measured import read_broken, read_measured
from stafette.platform.bench.plan import Backend, Plan
from stafette.platform.bench.results import Results, stored_plan
from stafette.platform.bench.slo import read_slo
from stafette.platform.bench.summary import Cost
from stafette.platform.bench.sweep import Sweep
from stafette.platform.bench.tables import best_of, broken_of, errors_of, summary_table
from stafette.platform.bench.words import counter_of, local_counter, usable_words
from stafette.platform.commands.bench_shapes import shape_of
from stafette.platform.commands.talking import KEY_VARIABLE
from stafette.platform.commands.telling import tell
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.trust import trust_of

_SEEDS = 1_000_000


def run_benchmark(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.timeout_s < float("inf"):
        raise InvalidSetting("--timeout-s", arguments.timeout_s, "must be above 0")
    slo = read_slo(arguments.goodput, not arguments.no_stream)
    cost = cost_of(arguments)
    plan = plan_of(arguments)
    results = Results(arguments.output_dir / plan.name)
    key = arguments.key or os.environ.get(KEY_VARIABLE)
    sweep = Sweep(
        plan=plan,
        results=results,
        config=ClientConfig(key=key, request_s=arguments.timeout_s, trust=trust_of(arguments)),
        make_backend=_backend_maker(plan, arguments),
        tell=tell,
        progress=progress,
        slo=slo,
        cost=cost,
    )
    command = shlex.join(["stafette", *_without(sys.argv[1:], arguments.key)])
    try:
        on_loop(sweep.run(command))
    finally:
        tell_results(results.folder)
    if not arguments.no_report:
        write_report(results.folder)
    return 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return the plan; what an earlier run has drawn or chosen, it keeps."""
    name = checked_name("--name", arguments.name)
    endpoints = read_endpoints(arguments.endpoint)
    shape = shape_of(arguments)
    earlier = stored_plan(arguments.output_dir / name)
    seed = arguments.seed
    if seed is None:
        seed = earlier.get("seed", random.randrange(_SEEDS))
    return Plan(
        name=name,
        endpoints=endpoints,
        shape=shape,
        seed=seed,
        model=arguments.model,
        lengths=Lengths(isl=arguments.isl, std=arguments.std, osl=arguments.osl),
        requests=arguments.requests,
        warmup=arguments.warmup,
        api=arguments.api,
        stream=not arguments.no_stream,
        ignore_eos=not arguments.no_ignore_eos,
        backend=_backend(arguments, shape, earlier.get("backend")),
    )


def cost_of(arguments: argparse.Namespace) -> Cost:
    if arguments.gpus < 1:
        raise InvalidSetting("--gpus", arguments.gpus, "must be at least 1")
    if arguments.price is not None:
        if not 0 < arguments.price < float("inf"):
            raise InvalidSetting("--price", arguments.price, "must be above 0")
        return Cost(gpus=arguments.gpus, dollars_hour=arguments.price)
    if arguments.hardware is None:
        return Cost(gpus=arguments.gpus)
    from stafette.platform.profiling.data_sheets import hardware

    price = hardware(arguments.hardware).price_per_hour
    return Cost(gpus=arguments.gpus, dollars_hour=price)


def tell_results(folder: Path) -> None:
    try:
        measured = read_measured(folder)
    except InvalidSetting:
        measured = []
    if measured:
        print(summary_table(measured))
    for line in (*best_of(measured), *errors_of(measured), *broken_of(read_broken(folder))):
        print(line)


def write_report(folder: Path) -> None:
    from stafette.platform.bench.charts import draw_all
    from stafette.platform.bench.page import write_page

    measured = read_measured(folder)
    page = write_page(folder, measured, read_broken(folder))
    try:
        drawn = draw_all(folder / PLOTS, measured)
    except InvalidSetting as error:
        tell(f"no charts as files: {error.remedy}")
    else:
        tell(f"{len(drawn)} charts are in {folder / PLOTS}")
    tell(f"the report is {page}")


def on_loop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed: its timers and sockets are the more exact ones."""
    try:
        import uvloop
    except ModuleNotFoundError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(coroutine)


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    from tqdm import tqdm

    with tqdm(total=total, unit="request", desc=name, file=sys.stderr) as bar:

        def advance() -> None:
            bar.update()

        yield advance


def _backend(arguments: argparse.Namespace, shape: Shape, earlier: Backend | None) -> Backend:
    asked, command = arguments.backend, aiperf.installed()
    if asked == "auto" and earlier is not None:
        return earlier
    if asked == "aiperf" and command is None:
        remedy = "is not installed: pip install aiperf (into any environment on PATH), or builtin"
        raise InvalidSetting("--backend", asked, remedy)
    if asked == "aiperf" and arguments.tokenizer is None:
        raise InvalidSetting("--tokenizer", None, "is what aiperf makes its prompts with: name it")
    if asked != "auto":
        return "aiperf" if asked == "aiperf" else "builtin"
    lengths = Lengths(isl=arguments.isl, std=arguments.std, osl=arguments.osl)
    levels = shape.levels(lengths, arguments.requests, 0)
    if command is None or any(level.aiperf is None for level in levels):
        return "builtin"
    if arguments.tokenizer is None:
        tell("aiperf is installed, but needs --tokenizer: the built-in client measures")
        return "builtin"
    return "aiperf"


def _backend_maker(
    plan: Plan, arguments: argparse.Namespace
) -> Callable[[Client, Served], Coroutine[Any, Any, Measuring]]:
    tokenizer = arguments.tokenizer

    async def make(client: Client, served: Served) -> Measuring:
        if plan.backend == "aiperf":
            command = aiperf.installed()
            if command is None:
                remedy = "measured the levels before, and is not installed any more"
                raise InvalidSetting("--backend", "aiperf", remedy)
            whole = os.path.abspath(tokenizer) if os.path.exists(tokenizer) else tokenizer
            return aiperf.Aiperf(command, whole, plan.lengths, arguments.timeout_s)
        if tokenizer is not None:
            return Builtin(await usable_words(local_counter(tokenizer)))
        return Builtin(await usable_words(counter_of(client, served.model)))

    return make


def _without(words: list[str], secret: str | None) -> list[str]:
    return [word.replace(secret, "***") if secret else word for word in words]
