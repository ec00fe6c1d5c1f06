"""Chooses who computes a prompt and who decodes it, together: what is best for one may be far from
the other. One target doing both is the case of no pair.
"""

from collections.abc import Sequence
from itertools import product
from math import ceil
from operator import attrgetter

from stafette.router import bounds, pair_bounds
from stafette.router.cost import Prompt, Terms, decode_ms, options_on, prompt_on, room_ms, stall_ms
from stafette.router.lineup import Lineup
from stafette.router.lots import number_of
from stafette.router.policy import lots_of
from stafette.router.request import Candidate, Option, Request
from stafette.router.transfer_cost import transfer_ms

_cost = attrgetter("cost")
_NAMES = (
    "queue",
    "load",
    "pull",
    "prefill",
    "transfer",
    "crowd",
    "stall",
    "decode",
    "room",
)


def options(
    request: Request,
    prefillers: Sequence[Candidate],
    decoders: Sequence[Candidate],
    terms: Terms,
    most: int,
) -> list[Option]:
    """Return the cheapest ways, cheapest first: up to `most` decoders alone, and as many pairs.

    Where more are equal than there is room for, lots are drawn.
    """
    if type(decoders) is Lineup:
        found = _of_many(request, prefillers, decoders, terms, most)
    else:
        found = _least(request, options_on(request, decoders, terms), most)
        if prefillers:
            found += _least(request, _pairs(request, prefillers, decoders, terms), most)
    found.sort(key=_cost)
    return found


def _of_many(
    request: Request,
    prefillers: Sequence[Candidate],
    decoders: Lineup,
    terms: Terms,
    most: int,
) -> list[Option]:
    name = number_of(request.request_id)
    group = decoders.drawn(name) if len(decoders) > most else decoders

    def alone(at: int) -> Option:
        return options_on(request, [group[at]], terms)[0]

    found = bounds.cheapest(bounds.alone(request, group, terms), alone, most)
    if type(prefillers) is not Lineup:
        return found
    if len(prefillers) * len(decoders) > most:
        prefillers, decoders = prefillers.drawn(name), decoders.drawn(name)

    def pair(at: int) -> Option:
        decoder, first = decoders[at // len(prefillers)], prefillers[at % len(prefillers)]
        return _pair(request, (first, prompt_on(request, first, terms)), decoder, terms)

    numbers, least = pair_bounds.pairs(request, prefillers, decoders, terms, most)
    return [*found, *bounds.cheapest(least, lambda at: pair(int(numbers[at])), most)]


def _pairs(
    request: Request, prefillers: Sequence[Candidate], decoders: Sequence[Candidate], terms: Terms
) -> list[Option]:
    first = [(one, prompt_on(request, one, terms)) for one in prefillers]
    return [_pair(request, half, decoder, terms) for decoder, half in product(decoders, first)]


def _least(request: Request, options: list[Option], most: int) -> list[Option]:
    if len(options) <= most:
        return options
    last = sorted(map(_cost, options))[most - 1]
    drawn = lots_of(request.request_id)
    near = [option for option in options if option.cost <= last]
    near.sort(key=lambda option: (option.cost, drawn(option)))
    return near[:most]


def _pair(
    request: Request, first: tuple[Candidate, Prompt], decoder: Candidate, terms: Terms
) -> Option:
    prefiller, prompt = first
    blocks = ceil(request.prompt_tokens / terms.block_size)
    missing = blocks - decoder.overlap.total
    all_ms = transfer_ms(prefiller.spec, decoder.spec, missing, terms.transfer)
    queue, tail_ms = prefiller.load.queue_ms, _tail_ms(request, prefiller, prompt, all_ms, terms)
    crowd = prompt.prefill_ms * terms.crowding
    stall = stall_ms(prefiller, prompt.prefill_ms, terms)
    decode, room = decode_ms(request, decoder, terms), room_ms(request, decoder, terms)
    way_ms = queue + prompt.load_ms + prompt.pull_ms + prompt.prefill_ms + tail_ms
    own = (queue, prompt.load_ms, prompt.pull_ms, prompt.prefill_ms, tail_ms)
    return Option(
        decode=decoder.target,
        prefill=prefiller.target,
        cost=way_ms + crowd + stall + decode + room,
        names=_NAMES,
        values=(*own, crowd, stall, decode, room),
        ttft_ms=way_ms + room,
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
