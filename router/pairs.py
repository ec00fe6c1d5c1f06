"""Chooses who computes a prompt and who decodes it, together: what is best for one may be far from
the other. One target doing both is the case of no pair.
"""

from collections.abc import Sequence
from itertools import product
from math import ceil

from stafette.router import bounds
from stafette.router.cost import Prompt, Terms, decode_ms, option_on, prompt_on, room_ms, stall_ms
from stafette.router.lineup import Lineup
from stafette.router.request import Candidate, Option, Request
from stafette.router.transfer_cost import transfer_ms

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

    Of equal ones the first in the groups' order count.
    """
    if type(decoders) is Lineup:
        found = _of_many(request, prefillers, decoders, terms, most)
    else:
        alone = [option_on(request, one, terms) for one in decoders]
        found = [*_least(alone, most), *_least(_pairs(request, prefillers, decoders, terms), most)]
    return sorted(found, key=_total)


def _of_many(
    request: Request,
    prefillers: Sequence[Candidate],
    decoders: Lineup,
    terms: Terms,
    most: int,
) -> list[Option]:
    def alone(at: int) -> Option:
        return option_on(request, decoders[at], terms)

    found = bounds.cheapest(bounds.alone(request, decoders, terms), alone, most)
    if type(prefillers) is not Lineup:
        return found

    def pair(at: int) -> Option:
        decoder, prefiller = divmod(at, len(prefillers))
        first = prefillers[prefiller]
        half = first, prompt_on(request, first, terms)
        return _pair(request, half, decoders[decoder], terms)

    least = bounds.pairs(request, prefillers, decoders, terms)
    return [*found, *bounds.cheapest(least.ravel(), pair, most)]


def _pairs(
    request: Request, prefillers: Sequence[Candidate], decoders: Sequence[Candidate], terms: Terms
) -> list[Option]:
    first = [(one, prompt_on(request, one, terms)) for one in prefillers]
    return [_pair(request, half, decoder, terms) for decoder, half in product(decoders, first)]


def _least(options: list[Option], most: int) -> list[Option]:
    return sorted(options, key=_total)[:most] if len(options) > most else options


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


def _total(option: Option) -> float:
    return option.cost
