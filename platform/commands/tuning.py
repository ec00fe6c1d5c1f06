"""What `stafette tune` is told, carried out."""

import argparse
import os
import random
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stafette.platform.bench.backends import Backend, Builtin
from stafette.platform.bench.checking import Served
from stafette.platform.bench.client import Client, ClientConfig
from stafette.platform.bench.comparing import Difference, compare
from stafette.platform.bench.errors import BenchError
from stafette.platform.bench.load import Lengths, Shape
from stafette.platform.bench.measured import Measured
from stafette.platform.bench.plan import Plan
from stafette.platform.bench.results import Results, stored_plan
from stafette.platform.bench.shapes.concurrency import ConcurrencyShape
from stafette.platform.bench.shapes.prefixes import PrefixShape
from stafette.platform.bench.slo import read_slo
from stafette.platform.bench.sweep import Sweep
from stafette.platform.bench.tables import difference_table, summary_table
from stafette.platform.bench.tuning.advice import described, verdict, write_config
from stafette.platform.bench.tuning.knobs import ABLATION, KNOBS, QUICK_KNOBS, chosen_knobs
from stafette.platform.bench.tuning.objectives import OBJECTIVES
from stafette.platform.bench.tuning.searching import Outcome, Search, Trial
from stafette.platform.bench.tuning.servers import Servers
from stafette.platform.bench.tuning.trials import Trials
from stafette.platform.bench.words import counter_of, usable_words
from stafette.platform.commands.benching import on_loop, progress, write_report
from stafette.platform.commands.talking import KEY_VARIABLE
from stafette.platform.commands.telling import tell
from stafette.platform.flags import given
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.trust import trust_of
from stafette.workers import EngineConfig

_SEEDS = 1_000_000
_WARMUP = 4
_QUICK = {"isl": 64, "osl": 16, "concurrency": 8}
_FULL = {"isl": Lengths().isl, "osl": Lengths().osl, "concurrency": 32}


def tune(arguments: argparse.Namespace) -> int:
    trials = _trials(arguments)
    if arguments.preset == "ablation":
        on_loop(_ablate(trials))
    else:
        knobs = chosen_knobs(arguments.knobs, QUICK_KNOBS if arguments.quick else KNOBS)
        search = Search(trials.run, knobs, _start(arguments), arguments.margin)
        on_loop(_search(trials, search, arguments))
    if not arguments.no_report:
        write_report(trials.sweep.results.folder)
    return 0


async def _search(trials: Trials, search: Search, arguments: argparse.Namespace) -> None:
    outcome = await search.find()
    if outcome.base.score is None:
        remedy = f"fails without any flag, so there is nothing to compare with: {outcome.base.why}"
        raise BenchError("server", outcome.base.label, remedy)
    difference = await _second_look(trials, outcome)
    said, taken = verdict(difference, outcome.best.flags)
    print(described(outcome, said, taken))
    path = trials.sweep.results.folder / "recommended.yaml"
    flags = dict(trials.servers.base) | (dict(outcome.best.flags) if taken else {})
    model = str(flags.pop("model", EngineConfig().model))
    write_config(path, model, flags, [*outcome.reasons(), said])
    tell(f"for `stafette serve`: {path}")


async def _second_look(trials: Trials, outcome: Outcome) -> Difference | None:
    """Measure what won once more, and what it was to beat: the best of many is partly luck."""
    wanted = trials.objective.compared
    if not outcome.best.flags or wanted is None:
        return None
    again = await trials.run(outcome.best.flags, 2)
    base = await trials.run({}, 2)
    if again.score is None or base.score is None:
        return None
    found = compare(trials.measured(base.label), trials.measured(again.label))
    return next((each for each in found if each.name == wanted), None)


async def _ablate(trials: Trials) -> None:
    done = [await trials.run(flags, label=label) for label, flags in ABLATION.items()]
    good = [trial for trial in done if trial.score is not None]
    for trial in done:
        if trial.score is None:
            print(f"{trial.label} fails: {trial.why}")
    if not good:
        raise BenchError("--preset", "ablation", "no server of it starts: see above")
    print(summary_table([trials.measured(trial.label)[0] for trial in good]))
    first = good[0]
    for trial in good[1:]:
        print(f"{trial.label} (B) beside {first.label} (A)")
        print(difference_table(compare(_levels(trials, first), _levels(trials, trial))))


def _levels(trials: Trials, trial: Trial) -> list[Measured]:
    return trials.measured(trial.label)


def _trials(arguments: argparse.Namespace) -> Trials:
    if not 0 <= arguments.margin < 1:
        raise InvalidSetting("--margin", arguments.margin, "must be in 0..1")
    for name in ("timeout_s", "start_s"):
        if not 0 < getattr(arguments, name) < float("inf"):
            option = f"--{name.replace('_', '-')}"
            raise InvalidSetting(option, getattr(arguments, name), "must be above 0")
    objective, slo = OBJECTIVES[arguments.objective], read_slo(arguments.goodput, stream=True)
    if objective.name == "goodput" and slo is None:
        raise InvalidSetting("--goodput", None, "is needed: --objective goodput counts by it")
    key, trust = arguments.key or os.environ.get(KEY_VARIABLE), trust_of(arguments)
    flags = given(arguments, EngineConfig)
    EngineConfig.of(**flags)  # wrong flags are told before a server is started
    server = {"flags": flags, "command": arguments.restart_command, "url": arguments.url}
    plan = _plan(arguments, server | {"goodput": slo.to_dict() if slo else None})
    sweep = Sweep(
        plan=plan,
        results=Results(arguments.output_dir / plan.name),
        config=ClientConfig(key=key, request_s=arguments.timeout_s, trust=trust),
        make_backend=_builtin,
        tell=tell,
        progress=progress,
        slo=slo,
    )
    servers = Servers(
        base=flags,
        command=arguments.restart_command,
        url=arguments.url,
        key=key,
        trust=trust,
        start_s=arguments.start_s,
    )
    command = shlex.join(["stafette", *sys.argv[1:]])
    return Trials(sweep=sweep, servers=servers, objective=objective, command=command)


def _plan(arguments: argparse.Namespace, server: Mapping[str, Any]) -> Plan:
    defaults = _QUICK if arguments.quick else _FULL
    told = {name: getattr(arguments, name) or value for name, value in defaults.items()}
    shape: Shape = ConcurrencyShape(concurrencies=(told["concurrency"],))
    if arguments.prefix_ratio is not None:
        shape = PrefixShape(
            ratios=(arguments.prefix_ratio,),
            prefixes=arguments.prefixes,
            concurrency=told["concurrency"],
        )
    earlier = stored_plan(Path(arguments.output_dir) / arguments.name)
    return Plan(
        name=arguments.name,
        endpoints=(),
        shape=shape,
        seed=earlier.get("seed", random.randrange(_SEEDS)),
        model=arguments.served_model,
        lengths=Lengths(isl=told["isl"], std=min(10, told["isl"] - 1), osl=told["osl"]),
        requests=arguments.requests,
        warmup=_WARMUP,
        server=server,
    )


def _start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return where the knobs stand: the engine's defaults, and what the user tells."""
    config = EngineConfig.of(**given(arguments, EngineConfig))
    return {knob.name: getattr(config, knob.name) for knob in KNOBS}


async def _builtin(client: Client, served: Served) -> Backend:
    return Builtin(await usable_words(counter_of(client, served.model)))
