"""Recommend a fleet for a load and a promise: pools, parallelism, flags, and what it costs."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from stafette.platform.commands.telling import tell
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.sizing import Split
from stafette.platform.profiling.data_sheets import hardware
from stafette.platform.profiling.document import Document, Limits, read_document
from stafette.platform.profiling.estimating import Worker, estimate
from stafette.platform.profiling.proposal import Subject, fleet, write
from stafette.platform.profiling.recommending import (
    Candidate,
    Engine,
    Load,
    Search,
    dollars_per_million,
    engines_of,
)
from stafette.workers.config import DType

_TENSOR_PARALLEL = (1, 2, 4, 8)
_BUDGETS = (512, 1024, 2048, 4096, 8192, 16_384)
_MAX_NUM_SEQS = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", help="a config.json, its directory, or a name as Qwen3-8B")
    add("--hardware", help="a name as H100, or a YAML file of one device")
    add("--profile", type=Path, help="a measured worker's, in place of the two above")
    add("--dtype", help="bfloat16, float16, float32 or fp8 (default: the model's)")
    add("--gpus", type=int, required=True, metavar="N", help="devices, at most")
    add("--tp", type=int, nargs="+", metavar="DEVICES", help="try only these (default: 1 2 4 8)")
    add("--ttft-ms", type=float, required=True, help="until the first token")
    add("--itl-ms", type=float, required=True, help="between two tokens, a request's mean")
    add("--percentile", type=float, default=95.0, help="of both (default: 95)")
    add("--rate", type=float, required=True, help="requests a second")
    add("--isl", type=int, required=True, metavar="TOKENS", help="of a prompt")
    add("--osl", type=int, required=True, metavar="TOKENS", help="of an answer")
    add("--cached", type=float, default=0.0, metavar="SHARE", help="of a prompt (default: 0)")
    add("--price", type=float, help="US dollars an hour of a device (default: the data file's)")
    add("--out", type=Path, help="for the fleet's YAML file")
    add("--chart", type=Path, metavar="PNG", help="for the Pareto chart")


def run(arguments: argparse.Namespace) -> int:
    if arguments.gpus < 1:
        raise InvalidSetting("--gpus", arguments.gpus, "must be at least 1")
    slo = SloConfig(
        ttft_ms=arguments.ttft_ms,
        itl_ms=arguments.itl_ms,
        ttft_percentile=arguments.percentile,
        itl_percentile=arguments.percentile,
    )
    load = Load(
        rate=arguments.rate,
        prompt_tokens=arguments.isl,
        output_tokens=arguments.osl,
        cached_share=arguments.cached,
    )
    search = Search(_engines(arguments), load, slo)
    price = _price(arguments)
    found = search.cheapest(arguments.gpus)
    if found is None:
        _tell_what_fails(search, arguments.gpus)
    else:
        print("\n".join(_described(found, search, price)))
        if arguments.out:
            _write(found, search, price, arguments)
    if arguments.chart:
        _draw(search, found, arguments)
    return 0 if found else 1


def _engines(arguments: argparse.Namespace) -> list[Engine]:
    if arguments.profile is not None:
        document = read_document(arguments.profile)
        if not document.points:
            raise InvalidSetting("--profile", str(arguments.profile), "holds no points: measure it")
        return _measured(document, arguments)
    for flag in ("model", "hardware"):
        if getattr(arguments, flag) is None:
            raise InvalidSetting(f"--{flag}", None, "is needed, or --profile FILE")
    return _estimated(arguments)


def _measured(document: Document, arguments: argparse.Namespace) -> list[Engine]:
    tensor_parallel = document.subject.get("tensor_parallel_size", 1)
    if not isinstance(tensor_parallel, int) or tensor_parallel < 1:
        remedy = "must be a whole number of at least 1"
        raise InvalidSetting("profile.subject.tensor_parallel_size", tensor_parallel, remedy)
    limits = _known_limits(document, arguments)
    known = replace(document, limits=limits)
    return engines_of(known, tensor_parallel, [limits.max_num_batched_tokens], limits.max_num_seqs)


def _known_limits(document: Document, arguments: argparse.Namespace) -> Limits:
    """Return a profile's limits; of an endpoint, what was seen to run together."""
    limits, decoded = document.limits, [p for p in document.points if p.kind == "decode"]
    if not limits.kv_tokens:
        seen = max((point.kv_tokens for point in decoded), default=0)
        limits = replace(limits, kv_tokens=seen)
    if not limits.max_num_batched_tokens or not limits.max_num_seqs:
        remedy = "does not tell its engine's limits: measure it again with its flags"
        raise InvalidSetting("--profile", str(arguments.profile), remedy)
    return limits


def _estimated(arguments: argparse.Namespace) -> list[Engine]:
    """Return engines for each parallelism under which the model fits; the first reason if none."""
    found: list[Engine] = []
    reason: InvalidSetting | None = None
    for tensor_parallel in arguments.tp or _TENSOR_PARALLEL:
        if tensor_parallel > arguments.gpus and not arguments.tp:
            continue
        try:
            worker = Worker(
                model=arguments.model,
                hardware=arguments.hardware,
                tensor_parallel=tensor_parallel,
                dtype=arguments.dtype,
            )
            found += engines_of(estimate(worker), tensor_parallel, _BUDGETS, _MAX_NUM_SEQS)
        except InvalidSetting as error:
            if error.field != "--tp":  # that one may be right for others
                raise
            reason = error
    if not found and reason is not None:
        raise reason
    return found


def _price(arguments: argparse.Namespace) -> float:
    if arguments.price is not None:
        if not 0 < arguments.price < float("inf"):
            raise InvalidSetting("--price", arguments.price, "must be above 0")
        return float(arguments.price)
    if arguments.hardware is None:
        raise InvalidSetting("--price", None, "is needed where a profile stands for the hardware")
    return hardware(arguments.hardware).price_per_hour


def _described(found: Candidate, search: Search, price: float) -> list[str]:
    """Return what is recommended, and what it rests on."""
    load, slo, engine = search.load, search.slo, found.engine
    output, everything = dollars_per_million(found, load, price)
    pools = _pools(found.split)
    return [
        f"{pools}, tensor_parallel_size {engine.tensor_parallel}: {found.devices} devices",
        f"max_num_seqs {engine.max_num_seqs}, "
        f"max_num_batched_tokens {engine.max_num_batched_tokens}",
        f"for {load.rate:g} requests/s of {load.prompt_tokens:,} + {load.output_tokens:,} tokens",
        f"first token {found.ttft_ms:,.0f} ms of {slo.ttft_ms:,.0f}, between tokens "
        f"{found.speeds.itl_ms:,.1f} ms of {slo.itl_ms:,.1f}, at p{slo.ttft_percentile:g}",
        f"${output:,.2f} a million output tokens, ${everything:,.2f} a million of all, "
        f"at ${price:,.2f} an hour of a device",
    ]


def _pools(split: Split) -> str:
    if split.both:
        return f"aggregated workers: {split.both}"
    return f"prefill workers: {split.prefill}, decode workers: {split.decode}"


def _tell_what_fails(search: Search, devices: int) -> None:
    """Say which target cannot be kept, by how much, and what is the nearest that can."""
    slo, nearest = search.slo, search.nearest(devices)
    print(f"no fleet of {devices} devices keeps the promise under {search.load.rate:g} requests/s")
    if nearest is None:
        least = min(engine.tensor_parallel for engine in search.engines)
        print(f"  not one worker: it takes {least} devices")
    else:
        _tell_targets(nearest, search)
    ttft_ms, itl_ms = search.fastest()
    if ttft_ms > slo.ttft_ms or itl_ms > slo.itl_ms:
        print(
            f"  no number of devices keeps {slo.ttft_ms:g} ms and {slo.itl_ms:g} ms: "
            f"an idle worker takes {ttft_ms:,.1f} ms and {itl_ms:,.1f} ms"
        )
        return
    if (rate := search.highest_rate(devices)) > 0:
        print(f"  kept with these devices: up to {rate:.3g} requests/s")
    if (more := search.more_devices(devices)) is not None:
        print(f"  kept at this rate: with {more.devices} devices")


def _tell_targets(nearest: Candidate, search: Search) -> None:
    parallel = nearest.engine.tensor_parallel
    print(f"  nearest: {_pools(nearest.split)}, tensor_parallel_size {parallel}")
    targets = (
        ("ttft_ms", nearest.ttft_ms, search.slo.ttft_ms),
        ("itl_ms", nearest.speeds.itl_ms, search.slo.itl_ms),
    )
    if not nearest.speeds.fits:
        print("  the load is more than its memory or its time holds: requests would pile up")
        return
    for name, value, limit in targets:
        if value > limit:
            print(f"  {name} fails: {value:,.1f} ms, {value / limit - 1:.0%} above {limit:g} ms")
        else:
            print(f"  {name} is kept: {value:,.1f} ms of {limit:g} ms")


def _write(found: Candidate, search: Search, price: float, arguments: argparse.Namespace) -> None:
    settings = fleet(found, search.load, search.slo, _subject(arguments))
    comments = [
        *_described(found, search, price),
        "Expected, not measured. The model must lie at this path on every node.",
    ]
    write(arguments.out, settings, comments)
    tell(f"stafette serve {arguments.out}")


def _subject(arguments: argparse.Namespace) -> Subject:
    """Return what is served: a config.json stands for its directory."""
    if arguments.profile is not None:
        document = read_document(arguments.profile)
        told = document.subject
        threads = told.get("threads") if told.get("device") == "cpu" else None
        model = arguments.model or str(told.get("model"))
        known: dict[str, Any] = {"num_cpus": threads} if isinstance(threads, int) else {}
        known["transport"] = next((p.transport for p in document.points if p.transport), "")
        return Subject(model, arguments.dtype, on_gpu=told.get("device") != "cpu", **known)
    if arguments.dtype not in (None, *get_args(DType)):
        remedy = "can be estimated, but no engine here runs it: leave out --out"
        raise InvalidSetting("--dtype", arguments.dtype, remedy)
    path = Path(arguments.model)
    model = str(path.parent) if path.suffix == ".json" else arguments.model
    return Subject(model, arguments.dtype, on_gpu=arguments.hardware.lower() != "cpu")


def _draw(search: Search, found: Candidate | None, arguments: argparse.Namespace) -> None:
    from stafette.platform.profiling.charts import draw_pareto
    from stafette.platform.profiling.pareto import fronts, place

    chosen = [place(found, search.load)] if found else []
    what = arguments.model or str(arguments.profile)
    title = f"{what} on {arguments.gpus} devices, first token within {search.slo.ttft_ms:g} ms"
    draw_pareto(arguments.chart, title, fronts(search, arguments.gpus), chosen)
    tell(f"the Pareto chart is {arguments.chart}")
