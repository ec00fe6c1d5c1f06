"""Chooses who computes a prompt and who decodes it, together: what is best for one may be far from
the other. One target doing both is the case of no pair.
"""

from bisect import insort
from collections.abc import Sequence
from math import ceil

from stafette.router.cost import (
    Prompt,
    Terms,
    decode_ms,
    option_on,
    prompt_on,
    room_ms,
    stall_ms,
)
from stafette.router.request import Candidate, Option, Request
from stafette.router.transfer_cost import transfer_ms


def options(
    request: Request,
    prefillers: Sequence[Candidate],
    decoders: Sequence[Candidate],
    terms: Terms,
    most: int,
) -> list[Option]:
    """Return the cheapest ways, cheapest first: up to `most` decoders alone, and as many pairs.

    Both are tried from what seems cheapest on, until no other can be among the `most` cheapest.
    """
    alone = _alone(request, decoders, terms, most)
    pairs = _pairs(request, prefillers, decoders, terms, most) if prefillers else []
    return sorted([*alone, *pairs], key=_total)


def _alone(
    request: Request, decoders: Sequence[Candidate], terms: Terms, most: int
) -> list[Option]:
    if len(decoders) <= most:
        return [option_on(request, one, terms) for one in decoders]
    halves = [(one.load.queue_ms + prompt_on(request, one, terms).ms, one) for one in decoders]
    halves.sort(key=_cost)
    found: list[Option] = []
    for own_ms, one in halves:
        if len(found) >= most and own_ms >= found[-1].cost:
            break  # what it costs others comes on top
        insort(found, option_on(request, one, terms), key=_total)
        del found[most:]
    return found


def _pairs(
    request: Request,
    prefillers: Sequence[Candidate],
    decoders: Sequence[Candidate],
    terms: Terms,
    most: int,
) -> list[Option]:
    halves = [(one, prompt_on(request, one, terms)) for one in prefillers]
    first = sorted(((_first_ms(*half, terms), *half) for half in halves), key=lambda half: half[0])
    second = sorted(((_second_ms(request, one, terms), one) for one in decoders), key=_cost)
    found: list[Option] = []
    for decode_cost, decoder in second:
        for prefill_cost, prefiller, prompt in first:
            if len(found) >= most and prefill_cost + decode_cost >= found[-1].cost:
                break  # what follows costs more, before anything is transferred
            if prefiller.target != decoder.target:
                insort(found, _pair(request, (prefiller, prompt), decoder, terms), key=_total)
                del found[most:]
    return found


def _pair(
    request: Request, first: tuple[Candidate, Prompt], decoder: Candidate, terms: Terms
) -> Option:
    prefiller, prompt = first
    blocks = ceil(request.prompt_tokens / terms.block_size)
    missing = blocks - decoder.overlap.total
    all_ms = transfer_ms(prefiller.spec, decoder.spec, missing, terms.transfer)
    parts = {
        "queue": prefiller.load.queue_ms,
        "load": prompt.load_ms,
        "pull": prompt.pull_ms,
        "prefill": prompt.prefill_ms,
        "transfer": _tail_ms(request, prefiller, prompt, all_ms, terms),
        "crowd": prompt.prefill_ms * terms.crowding,
        "stall": stall_ms(prefiller, prompt.prefill_ms, terms),
        "decode": decode_ms(request, decoder, terms),
        "room": room_ms(request, decoder, terms),
    }
    own = ("queue", "load", "pull", "prefill", "transfer", "room")
    return Option(
        decode=decoder.target,
        prefill=prefiller.target,
        cost=sum(parts.values()),
        names=tuple(parts),
        values=tuple(parts.values()),
        ttft_ms=sum(parts[name] for name in own),
        cached_tokens=min(prompt.cached_blocks * terms.block_size, request.prompt_tokens - 1),
        source=prompt.source,
    )


def _tail_ms(
    request: Request, prefiller: Candidate, prompt: Prompt, all_ms: float, terms: Terms
) -> float:
    """Return what is left of the transfer when the prompt is computed.

    Each chunk moves while the next one is computed, so at least the last chunk's share is left.
    """
    uncached = request.prompt_tokens - prompt.cached_blocks * terms.block_size
    chunks = max(1, ceil(uncached / prefiller.performance.max_num_batched_tokens))
    hidden_ms = prompt.prefill_ms * (chunks - 1) / chunks
    return max(all_ms - hidden_ms, all_ms / chunks)


def _first_ms(prefiller: Candidate, prompt: Prompt, terms: Terms) -> float:
    crowd_ms = prompt.prefill_ms * terms.crowding
    stalled_ms = stall_ms(prefiller, prompt.prefill_ms, terms)
    return prefiller.load.queue_ms + prompt.ms + crowd_ms + stalled_ms


def _second_ms(request: Request, decoder: Candidate, terms: Terms) -> float:
    return decode_ms(request, decoder, terms) + room_ms(request, decoder, terms)


def _cost(half: tuple[float, Candidate]) -> float:
    return half[0]


def _total(option: Option) -> float:
    return option.cost
