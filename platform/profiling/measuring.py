"""Measures what a plan asks for and a profile does not hold yet, and keeps each point at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.document import Document, Limits, read_document
from stafette.platform.profiling.points import Point, decode_name, prefill_name
from stafette.workers.mocker.speed_profile import Profile

_USUAL_BLOCK = 16
_ROOM_TOKENS = 64  # of a context, for what is decoded while it is measured
_MOST_KV = 0.9  # of the pool: nothing may be preempted


class Target(Protocol):
    """What can be measured: an engine, or an endpoint."""

    @property
    def subject(self) -> Mapping[str, Any]: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def base(self) -> Profile: ...

    def prefill(self, new_tokens: int, cached_tokens: int) -> Point: ...

    def decode(self, batches: Sequence[int], context_tokens: int) -> list[Point]:
        """Measure each batch; of those that do not fit, nothing is returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Prompts by their length and the share of it that is cached; batches by their context."""

    prompts: tuple[int, ...] = (32, 128, 512, 1024, 2048, 4096)
    shares: tuple[float, ...] = (0.0, 0.5, 0.9)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    contexts: tuple[int, ...] = (64, 256, 1024)
    most_tokens: int = 8192  # of all prompts of a batch: they must be computed first

    def __post_init__(self) -> None:
        for each in fields(self)[:4]:
            values = getattr(self, each.name)
            least, most = (0, 0.99) if each.name == "shares" else (1, 1 << 24)
            if not values or not all(least <= value <= most for value in values):
                raise InvalidSetting(f"--{each.name}", values, f"must be in {least}..{most}")

    def prefills(self, limits: Limits) -> list[tuple[int, int]]:
        """Return (new, cached) tokens; what is cached are whole blocks."""
        block = limits.block_size or _USUAL_BLOCK
        found = []
        for prompt in self.prompts:
            for share in self.shares:
                cached = int(prompt * share) // block * block
                if (not share or cached) and _fits(prompt + 1, limits.max_model_len):
                    found.append((prompt - cached, cached))
        return found

    def decodes(self, limits: Limits) -> list[tuple[int, list[int]]]:
        """Return (context, batches), the largest batch first: the smaller ones are parts of it."""
        found = []
        for context in self.contexts:
            each = context + _ROOM_TOKENS
            fitting = [
                batch
                for batch in sorted(self.batches, reverse=True)
                if batch * context <= max(self.most_tokens, context)
                and _fits(batch, limits.max_num_seqs)
                and _fits(batch * each, int(limits.kv_tokens * _MOST_KV))
            ]
            if fitting and _fits(each, limits.max_model_len):
                found.append((context, fitting))
        return found


def begin(path: Path, target: Target) -> Document:
    """Return what the file holds of this target, or a profile without points."""
    fresh = Document(subject=target.subject, limits=target.limits, base=target.base)
    if not path.exists():
        return fresh
    found = read_document(path)
    for name, value in fresh.subject.items():
        if found.subject.get(name) != value:
            remedy = f"is of another one ({value!r} is measured now): name another file"
            raise InvalidSetting(f"{path}: subject.{name}", found.subject.get(name), remedy)
    for name, value in asdict(fresh.limits).items():
        if name != "kv_tokens" and getattr(found.limits, name) != value:
            remedy = f"was another flag ({value} now): name another file"
            raise InvalidSetting(f"{path}: limits.{name}", getattr(found.limits, name), remedy)
    return replace(found, limits=fresh.limits)  # how much memory is free changes a little


def measure(
    document: Document,
    target: Target,
    plan: Plan,
    keep: Callable[[Document], None],
    done: Callable[[str, int], None] = lambda what, count: None,
) -> Document:
    """Measure what is missing; `keep` gets each new state, `done` how many points are settled."""
    for new, cached in plan.prefills(target.limits):
        name = prefill_name(new, cached)
        if not document.has(name):
            document = document.with_points([target.prefill(new, cached)])
            keep(document)
        done(name, 1)
    for context, batches in plan.decodes(target.limits):
        missing = [batch for batch in batches if not document.has(decode_name(batch, context))]
        if missing:
            document = document.with_points(target.decode(missing, context))
            keep(document)
        done(decode_name(batches[0], context), len(batches))
    return document


def count(plan: Plan, limits: Limits) -> int:
    return len(plan.prefills(limits)) + sum(len(batches) for _, batches in plan.decodes(limits))


def _fits(wanted: int, limit: int) -> bool:
    return not limit or wanted <= limit  # 0: not known
