"""Measure how fast a worker is, and write its profile: an engine here, or a server by its URL."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stafette.platform.commands.talking import Asker, add_server_arguments
from stafette.platform.commands.telling import tell
from stafette.platform.flags import add_flags, given
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.document import Document, Limits
from stafette.platform.profiling.endpoint_target import EndpointTarget
from stafette.platform.profiling.measuring import Plan, Target, begin, count, measure
from stafette.workers import EngineConfig
from stafette.workers.mocker.speed_profile import Profile

if TYPE_CHECKING:
    from stafette.workers.engine import Engine

_READS = 5  # for each sample: they take milliseconds
_QUICK = Plan(prompts=(32, 128, 256), shares=(0.0, 0.5), batches=(1, 2, 4), contexts=(64, 256))
_TRANSFER = "by what blocks come from another process here (an endpoint's: see --transfer-gb-s)"
_PLAN_FLAGS = (
    ("prompts", int, "lengths in tokens"),
    ("shares", float, "of a prompt that are cached"),
    ("batches", int, "sequences that decode together"),
    ("contexts", int, "their lengths in tokens"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, help="the profile, JSON; points that it holds are not measured again")
    whose = "of a server with OpenAI's API; the flags of its engine tell its limits"
    add_server_arguments(parser, whose, default=None)
    add("--mocker", type=Path, metavar="FILE", help="write the step model alone, for mock workers")
    add("--charts", type=Path, metavar="DIR", help="for the charts (default: beside the profile)")
    add("--no-charts", action="store_true")
    add("--quick", action="store_true", help="few and small points")
    add("--samples", type=int, default=3, help="of each point; medians count (default: 3)")
    for name, kind, what in _PLAN_FLAGS:
        shown = " ".join(map(str, getattr(Plan(), name)))
        add(f"--{name}", type=kind, nargs="+", help=f"{what} (default: {shown})")
    add("--transfer", choices=("shm", "tcp", "none"), default="shm", help=_TRANSFER)
    add("--transfer-gb-s", type=float, help="of KV into a worker: not measured, kept as told")
    add_flags(parser, EngineConfig, "engine")


def run(arguments: argparse.Namespace) -> int:
    if arguments.samples < 1:
        raise InvalidSetting("--samples", arguments.samples, "must be at least 1")
    plan = _plan(arguments)
    with _target(arguments) as target:
        document = begin(arguments.out, target)
        with _progress(count(plan, target.limits)) as done:
            document = measure(document, target, plan, lambda news: news.write(arguments.out), done)
    document = _with_transfers(document, arguments)
    document.write(arguments.out)
    print(table(document))
    tell(f"the profile is in {arguments.out}")
    if arguments.mocker:
        write_mocker(document, arguments.mocker)
    if not arguments.no_charts:
        draw(document, arguments.out, arguments.charts)
    return 0


def _with_transfers(document: Document, arguments: argparse.Namespace) -> Document:
    """Measure what the file does not hold; the engine is closed, and nobody else computes."""
    told = arguments.transfer == "none" or arguments.transfer_gb_s is not None
    if told or document.subject.get("device") != "cpu":  # a GPU's memory moves by other ways
        return document
    from stafette.platform.profiling.transferring import missing, open_transfers

    block_bytes = document.base.kv_bytes_per_token * document.limits.block_size
    wanted = missing(document.points, arguments.transfer, block_bytes)
    if not wanted:
        return document
    with open_transfers(arguments.transfer, block_bytes) as transfers:
        return document.with_points(
            [transfers.measure(count, _READS * arguments.samples) for count in wanted]
        )


def table(document: Document) -> str:
    """Return the points with the model's errors, the model, and what fits."""
    found = document.fit
    lines = [f"{'point':<28}{'ms':>10}{'low':>10}{'high':>10}{'model':>8}"]
    for point, error in zip(document.points, found.errors, strict=True):
        times = f"{point.ms:>10.2f}{point.low_ms:>10.2f}{point.high_ms:>10.2f}"
        lines.append(f"{point.name:<28}{times}{error:>+8.0%}")
    lines += [f"{name:<28}{value:>10.4g}" for name, value in found.terms.items()]
    lines.append(
        f"the model is off by {found.mean_error:.1%} on average, {found.max_error:.1%} most"
    )
    limits = document.limits
    decoded = [point for point in document.points if point.kind == "decode"]
    if limits.kv_tokens:
        lines.append(f"fits: {limits.max_num_seqs} sequences, {limits.kv_tokens:,} tokens of KV")
    elif decoded:
        most = max(decoded, key=lambda point: point.batch)
        tokens = max(point.kv_tokens for point in decoded)
        lines.append(f"ran together: {most.batch} sequences, {tokens:,} tokens of KV, at least")
    return "\n".join(lines)


def write_mocker(document: Document, path: Path) -> None:
    try:
        path.write_text(document.model.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidSetting("--mocker", str(path), f"cannot be written: {error}") from None
    tell(f"mock workers read {path}")


def draw(document: Document, out: Path, folder: Path | None) -> None:
    from stafette.platform.profiling.charts import draw_profile

    try:
        drawn = draw_profile(document, folder or out.parent, out.stem)
    except InvalidSetting as error:
        if folder is not None:  # they were asked for
            raise
        tell(f"no charts: {error.remedy}")
    else:
        tell("charts: " + ", ".join(map(str, drawn)))


def _plan(arguments: argparse.Namespace) -> Plan:
    chosen = _QUICK if arguments.quick else Plan()
    own = {each.name: getattr(chosen, each.name) for each in fields(Plan)}
    for name, _, _ in _PLAN_FLAGS:
        if getattr(arguments, name) is not None:
            own[name] = tuple(getattr(arguments, name))
    return Plan(**own)


@contextmanager
def _target(arguments: argparse.Namespace) -> Iterator[Target]:
    flags = given(arguments, EngineConfig)
    if arguments.url is not None:
        known = EngineConfig.of(**{k: v for k, v in flags.items() if k != "model"})
        yield EndpointTarget(
            Asker.of(arguments),
            flags.get("model"),
            _told_limits(known),
            _base(arguments),
            samples=arguments.samples,
        )
        return
    base = _base(arguments)
    with open_engine(EngineConfig.of(**flags), base, arguments.samples) as target:
        yield target


@contextmanager
def open_engine(config: EngineConfig, base: Profile, samples: int) -> Iterator[Target]:
    """Build an engine here, to be measured; the base tells how fast KV is handed over."""
    from stafette.platform.profiling.engine_target import EngineTarget
    from stafette.workers.building import build_engine  # here, because torch takes seconds

    engine = build_engine(config)
    try:
        layout = engine.executor.runner.kv_layout
        per_token = layout.block_bytes // layout.block_size * config.tensor_parallel_size
        subject, limits = _subject(config, engine), _limits(engine)
        known = replace(base, kv_bytes_per_token=per_token)
        yield EngineTarget(engine, subject, limits, known, samples=samples)
    finally:
        engine.close()


def _told_limits(config: EngineConfig) -> Limits:
    return Limits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len or 0,
        kv_tokens=(config.num_kv_blocks or 0) * config.block_size,
        block_size=config.block_size,
    )


def _limits(engine: "Engine") -> Limits:
    config = engine.config
    return Limits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=engine.max_model_len,
        kv_tokens=engine.stats().scheduler.num_blocks * config.block_size,
        block_size=config.block_size,
    )


def _subject(config: EngineConfig, engine: "Engine") -> dict[str, Any]:
    return {
        "kind": "engine",
        "model": config.model,
        "runner": type(engine.executor.runner).__name__,
        "device": engine.executor.runner.device.type,
        "threads": config.threads,
        "tensor_parallel_size": config.tensor_parallel_size,
        "async_scheduling": config.async_scheduling,
    }


def _base(arguments: argparse.Namespace) -> Profile:
    if arguments.transfer_gb_s is None:
        return Profile()
    return Profile(transfer_gb_s=arguments.transfer_gb_s)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    from tqdm import tqdm

    with tqdm(total=total, unit="point", file=sys.stderr) as bar:

        def done(name: str, points: int) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update(points)

        yield done
