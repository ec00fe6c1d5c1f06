"""What a request costs on a target, in predicted milliseconds: its own wait, and that of others.

Its own: until its turn, bringing cached blocks to the device, computing the rest. The others': who
comes while the target is busy with it waits longer, and whoever decodes there has longer steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stafette.router.errors import InvalidValue
from stafette.router.index import Overlap
from stafette.router.request import Candidate, Option, Request, Source
from stafette.router.transfer_cost import TransferConfig, tier_ms, transfer_ms

_new = tuple.__new__
_NO_BLOCKS = (0, 0, 0)  # on the tiers below the device
_NAMES = ("queue", "load", "pull", "prefill", "crowd", "stall", "decode", "room")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig:
    crowd_limit: float = 0.9  # utilization above this counts as this
    crowd_weight: float = 1.0  # of those who will wait behind the request; 0: selfish
    decode_weight: float = 1.0  # of those who decode there

    def __post_init__(self) -> None:
        if not 0 <= self.crowd_limit < 1:
            raise InvalidValue("cost.crowd_limit", self.crowd_limit, "must be in 0..1, below 1")
        for name in ("crowd_weight", "decode_weight"):
            if not getattr(self, name) >= 0:
                raise InvalidValue(f"cost.{name}", getattr(self, name), "must be at least 0")


class Terms(NamedTuple):
    """What holds for all candidates of one decision."""

    block_size: int
    expected_output_tokens: float
    crowding: float  # milliseconds that later ones wait for each one that a prompt is computed
    sources: Sequence[tuple[int, Candidate]]  # (blocks, who could give them), the most first
    cost: CostConfig
    transfer: TransferConfig
    prompts: dict["_Alike", "Prompt"]  # that were found in this decision


class Prompt(NamedTuple):
    """How a target would get a prompt's KV."""

    cached_blocks: int
    load_ms: float
    pull_ms: float
    prefill_ms: float
    source: Source | None = None

    @property
    def ms(self) -> float:
        return self.load_ms + self.pull_ms + self.prefill_ms


_Alike = tuple[Overlap, int, str, str, int]


def crowding(utilizations: Sequence[float], config: CostConfig) -> float:
    """Return how many milliseconds others lose for each one that a target is busy.

    Work that comes to a queue of utilization u delays all that come until it is empty again: u of a
    request for each service time, whose work delays u more, and so on: u / (1 - u).
    """
    if not utilizations:
        return 0.0
    mean = sum(utilizations) / len(utilizations)
    mean = min(mean, config.crowd_limit)
    return config.crowd_weight * mean / (1.0 - mean)


def prompt_on(request: Request, candidate: Candidate, terms: Terms) -> Prompt:
    """Return the fastest way to the prompt's KV on this target.

    Most targets are alike in this: they hold the same, are equally fast, and equally near to those
    who hold more.
    """
    spec = candidate.spec
    alike = (candidate.overlap, id(candidate.performance), spec.host, spec.rack, spec.block_bytes)
    found = terms.prompts.get(alike)
    if found is None:
        found = _prompt_on(request, candidate, terms)
        if (
            candidate.overlap[1:] == _NO_BLOCKS
        ):  # else it may be a source itself, and not for itself
            terms.prompts[alike] = found
    return found


def _prompt_on(request: Request, candidate: Candidate, terms: Terms) -> Prompt:
    own = _own_blocks(request, candidate, terms)
    source = _best_source(candidate, own, terms) if terms.sources else None
    if source is None:
        return own
    pulled = _pulled(request, candidate, source, own, terms)
    return pulled if pulled.ms < own.ms else own


def options_on(request: Request, candidates: Iterable[Candidate], terms: Terms) -> list[Option]:
    """Return for each of them what it costs when that one does all of it."""
    last, block_size, crowding = request.prompt_tokens - 1, terms.block_size, terms.crowding
    options = []
    for one in candidates:
        cached_blocks, load_ms, pull_ms, prefill_ms, source = prompt_on(request, one, terms)
        load = one.load
        queue_ms, crowd, stall, decode, room = load.queue_ms, prefill_ms * crowding, 0.0, 0.0, 0.0
        if load.waiting or load.running:
            stall = stall_ms(one, prefill_ms, terms)
            decode = decode_ms(request, one, terms)
        if load.used_blocks:
            room = room_ms(request, one, terms)
        ttft_ms = queue_ms + load_ms + pull_ms + prefill_ms + room
        values = (queue_ms, load_ms, pull_ms, prefill_ms, crowd, stall, decode, room)
        cost = ttft_ms + crowd + stall + decode
        cached = cached_blocks * block_size
        if cached > last:
            cached = last
        target = one.spec.cache.target
        # Made for every candidate of every request: this is the fast way to make a named tuple.
        made = _new(Option, (target, None, cost, _NAMES, values, ttft_ms, cached, source))
        options.append(made)
    return options


def stall_ms(candidate: Candidate, prefill_ms: float, terms: Terms) -> float:
    """Return what those lose that decode there while the prompt is computed.

    Who waits there for a prompt ahead of this one decodes by then, unless that is done elsewhere.
    """
    load, share = candidate.load, candidate.performance.prefill_stalls_decode
    decoding = load.running if candidate.spec.role == "prefill" else load.requests
    return decoding * prefill_ms * share * terms.cost.decode_weight


def decode_ms(request: Request, candidate: Candidate, terms: Terms) -> float:
    """Return what those lose that decode there, or soon will, over this answer's steps."""
    context = request.prompt_tokens + terms.expected_output_tokens / 2
    added_ms = candidate.performance.added_step_ms(context) * terms.expected_output_tokens
    return candidate.load.requests * added_ms * terms.cost.decode_weight


def room_ms(request: Request, candidate: Candidate, terms: Terms) -> float:
    """Return how long it waits for blocks: until the running ones have given back enough."""
    total, used = candidate.spec.total_blocks, candidate.load.used_blocks
    tokens = request.prompt_tokens + terms.expected_output_tokens
    missing = used + tokens / terms.block_size - candidate.shared_blocks - total
    if total <= 0 or missing <= 0 or used <= 0:
        return 0.0
    load = candidate.load
    step_ms = candidate.performance.decode_step_ms(load.running, load.kv_tokens)
    return missing / used * step_ms * terms.expected_output_tokens


def _own_blocks(request: Request, candidate: Candidate, terms: Terms) -> Prompt:
    """Return the best use of what the target has itself: computing may beat a slow tier."""
    device, slower = candidate.overlap.device, candidate.overlap[1:]
    best = _computed(request, candidate, device, 0.0, terms)
    if slower == _NO_BLOCKS:
        return best
    for level in range(1, len(slower) + 1):
        taken = slower[:level] + _NO_BLOCKS[level:]
        loaded = (taken[0], taken[1], taken[2])
        load_ms = tier_ms(loaded, candidate.spec.block_bytes, terms.transfer)
        tried = _computed(request, candidate, device + sum(loaded), load_ms, terms)
        best = tried if tried.ms < best.ms else best
    return best


def _computed(
    request: Request, candidate: Candidate, cached_blocks: int, load_ms: float, terms: Terms
) -> Prompt:
    # The last token is always computed, for its logits.
    uncached = request.prompt_tokens - cached_blocks * terms.block_size
    if uncached < 1:
        uncached = 1
    cached = request.prompt_tokens - uncached
    return Prompt(cached_blocks, load_ms, 0.0, candidate.performance.prefill_ms(uncached, cached))


def _best_source(candidate: Candidate, own: Prompt, terms: Terms) -> Candidate | None:
    """Return who saves most time, at the price of a token without its attention."""
    block_ms = candidate.performance.prefill_ms_per_token * terms.block_size
    best, most_ms = None, 0.0
    for held, source in terms.sources:
        count = held - own.cached_blocks
        if count <= 0:
            break  # nobody after it holds more
        if source is candidate:
            continue
        saved_ms = count * block_ms
        saved_ms -= transfer_ms(source.spec, candidate.spec, count, terms.transfer)
        if saved_ms > most_ms:
            best, most_ms = source, saved_ms
    return best


def _pulled(
    request: Request, candidate: Candidate, source: Candidate, own: Prompt, terms: Terms
) -> Prompt:
    first, total = own.cached_blocks, source.overlap.total
    pull_ms = transfer_ms(source.spec, candidate.spec, total - first, terms.transfer)
    # What the source itself has on a slow tier comes from there.
    slow = source.overlap[1:]
    pull_ms += tier_ms((slow[0], slow[1], slow[2]), source.spec.block_bytes, terms.transfer)
    rest = _computed(request, candidate, total, own.load_ms, terms)
    named = Source(source.target, first, total - first)
    return Prompt(total, own.load_ms, pull_ms, rest.prefill_ms, named)
