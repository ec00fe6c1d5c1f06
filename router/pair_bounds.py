"""What the pairs of a large fleet cost, of those that may be among the cheapest.

A thousand targets have hundreds of thousands of pairs, and most need not be calculated: of decoders
that hold equally much and stand equally far from a prefiller, only the few that are cheapest by
themselves can be in one of the cheapest pairs. It is the same the other way round.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from stafette.router.board import Flags, Floats, Ints
from stafette.router.bounds import Prompts, decodes, prompts, rooms, scarce, stalls
from stafette.router.cost import Terms
from stafette.router.lineup import Lineup
from stafette.router.request import Request
from stafette.router.transfer_cost import links

Column = Floats | Ints | Flags

_MOST_NEAR = 0.1  # share of the pairs that are looked at because their two are near to each other
_ROUNDING = 1e-9  # far more than sums are off, as a share of them


class Halves(NamedTuple):
    """Two groups, with what each of their targets adds to the cost of a pair."""

    prefillers: Lineup
    decoders: Lineup
    prompt: Prompts
    queued: Floats  # until a prefiller has the prompt's KV
    stall: Floats
    decode: Floats
    room: Floats
    scarce: Flags  # whose `room` is only the least that it can be


def pairs(
    request: Request, prefillers: Lineup, decoders: Lineup, terms: Terms, most: int
) -> tuple[Ints, Floats]:
    """Return the pairs that may be among the `most` cheapest, and the least that each can cost.

    A pair's number is the decoder's times the number of prefillers, plus the prefiller's.
    """
    prompt = prompts(request, prefillers, terms)
    queued = prefillers.load("queue_ms") + prompt.load_ms + prompt.pull_ms + prompt.prefill_ms
    stall = stalls(prefillers, prompt.prefill_ms, terms)
    decode, room = decodes(request, decoders, terms), rooms(request, decoders, terms)
    unsure = scarce(request, decoders)
    halves = Halves(prefillers, decoders, prompt, queued, stall, decode, room, unsure)
    held, alike = np.unique(decoders.held(), return_inverse=True)
    by_link = _by_link(request, halves, held, terms)
    same_host, same_rack = _together(halves, "hosts"), _together(halves, "racks")
    numbers = np.arange(len(decode) * len(queued))
    if _sorted(terms):
        slack = _ROUNDING * float(by_link.max() + decode.max() + room.max())
        numbers = np.flatnonzero(_worth(halves, same_host, same_rack, most, slack))
    decoder, prefiller = np.divmod(numbers, len(queued))
    link = np.where(same_host.ravel()[numbers], 0, np.where(same_rack.ravel()[numbers], 1, 2))
    costs = by_link[link, alike.reshape(-1)[decoder], prefiller]
    return numbers, costs + decode[decoder] + room[decoder]


def _by_link(request: Request, halves: Halves, held: Ints, terms: Terms) -> Floats:
    """Return each prefiller's part of the cost, by the way and by what the decoder holds."""
    prompt = halves.prompt
    missing = -(-request.prompt_tokens // terms.block_size) - held
    found = []
    for way in links(terms.transfer):
        costs = _tails(request, halves, _transfers(halves.prefillers, missing, way), terms)
        costs += halves.queued
        costs += prompt.prefill_ms * terms.crowding
        costs += halves.stall
        found.append(costs)
    return np.array(found)


def _tails(request: Request, halves: Halves, all_ms: Floats, terms: Terms) -> Floats:
    """Return what is left of each transfer when the prompt is computed (pairs.py)."""
    prompt = halves.prompt
    uncached = request.prompt_tokens - prompt.cached_blocks * terms.block_size
    chunks = np.maximum(1.0, np.ceil(uncached / _batches(halves.prefillers)))
    hidden_ms = prompt.prefill_ms * (chunks - 1) / chunks
    left: Floats = np.maximum(all_ms - hidden_ms, all_ms / chunks)
    return left


def _batches(group: Lineup) -> Floats:
    return group.board.speed(lambda one: float(one.max_num_batched_tokens))[group.rows]


def _transfers(group: Lineup, missing: Ints, way: tuple[float, float]) -> Floats:
    latency_ms, ms_per_byte = way
    count = missing[:, None]
    sizes = group.board.block_bytes[group.rows]
    return np.where(count > 0, latency_ms + count * sizes * ms_per_byte, 0.0)


def _together(halves: Halves, what: str) -> Flags:
    """Return which pairs share a host, or a rack."""
    places: Ints = getattr(halves.decoders.board, what)
    one, other = places[halves.prefillers.rows], places[halves.decoders.rows][:, None]
    if not one.any():
        return np.zeros((len(other), len(one)), bool)
    same: Flags = (one == other) & (one > 0)
    return same


def _sorted(terms: Terms) -> bool:
    """Nearer is never slower, as far as the settings tell."""
    latencies, per_byte = zip(*links(terms.transfer), strict=True)
    return list(latencies) == sorted(latencies) and list(per_byte) == sorted(per_byte)


def _worth(halves: Halves, same_host: Flags, same_rack: Flags, most: int, slack: float) -> Flags:
    """Return the pairs that must be calculated: the near ones, and the best of each kind."""
    prefillers, decoders, prompt = halves[:3]
    sizes = prefillers.board.block_bytes[prefillers.rows]
    first: list[Column] = [prompt.cached_blocks, prompt.prefill_ms, sizes, _batches(prefillers)]
    second: list[Column] = [decoders.held(), halves.scarce]
    worth = same_host | same_rack
    if worth.mean() > _MOST_NEAR:  # few racks: each makes kinds of its own
        worth = same_host.copy()
        first.append(prefillers.board.racks[prefillers.rows])
        second.append(decoders.board.racks[decoders.rows])
    columns = _best(first, halves.queued, halves.stall, most, slack)
    rows = _best(second, halves.decode, halves.room, most, slack)
    worth[np.ix_(np.union1d(rows, np.flatnonzero(halves.scarce)), columns)] = True
    return worth


def _best(kinds: Sequence[Column], one: Floats, other: Floats, most: int, slack: float) -> Ints:
    """Return of each kind those whose sum is among the `most` least, of equal ones the first.

    Sums that differ by less than `slack` may change places when something is added.
    """
    order = np.lexsort((other, one, one + other, *kinds))
    starts = np.flatnonzero(_changes(kind[order] for kind in kinds))
    ends = np.append(starts[1:], len(order))
    sums = (one + other)[order]
    limits = np.repeat(sums[np.minimum(starts + most, ends) - 1], ends - starts)
    equals = _changes(column[order] for column in (*kinds, one, other))
    at = np.arange(len(order))
    rank = at - np.maximum.accumulate(np.where(equals, at, 0))
    return order[(sums <= limits + slack) & (rank < most)]


def _changes(columns: Iterable[Column]) -> Flags:
    """Return where a value is another than the one before it, in any of the columns."""
    found = [np.append(True, column[1:] != column[:-1]) for column in columns]
    changed: Flags = np.logical_or.reduce(found)
    return changed
