"""What many ways to serve a request cost, calculated at once, to find the few that are cheapest.

The formulas are those of cost.py, step by step in their order, so that sums are equal
to the last bit: what may be among the cheapest is priced there one by one, and nothing else.
"""

from bisect import insort
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.router.board import Flags, Floats, Ints
from stafette.router.cost import Terms, prompt_on
from stafette.router.lineup import Lineup
from stafette.router.request import Option, Request


class Prompts(NamedTuple):
    """How each target would get the prompt's KV: the columns of cost.py's `Prompt`."""

    cached_blocks: Floats
    load_ms: Floats
    pull_ms: Floats
    prefill_ms: Floats


def prompts(request: Request, group: Lineup, terms: Terms) -> Prompts:
    """Look once at each kind of target: most of them are alike in this."""
    kinds = _kinds(group, terms)
    _, firsts, kind_of = np.unique(kinds, return_index=True, return_inverse=True)
    found = [prompt_on(request, group[at], terms)[:4] for at in firsts.tolist()]
    return Prompts(*np.array(found, float).T[:, kind_of.reshape(-1)])


def alone(request: Request, group: Lineup, terms: Terms) -> Floats:
    """Return the least that it can cost when one of them does all."""
    _, load_ms, pull_ms, prefill_ms = prompts(request, group, terms)
    stall = stalls(group, prefill_ms, terms)
    decode, room = decodes(request, group, terms), rooms(request, group, terms)
    ttft_ms = group.load("queue_ms") + load_ms + pull_ms + prefill_ms + room
    return ttft_ms + prefill_ms * terms.crowding + stall + decode


def cheapest(bounds: Floats, price: Callable[[int], Option], most: int) -> list[Option]:
    """Return the cheapest options, cheapest first; of equal ones those whose number is less.

    `bounds` is the least that each can cost; they are priced from the least on, until no other can
    be among the cheapest.
    """
    found: list[tuple[float, int, Option]] = []
    start, count = 0, 2 * most
    while start < len(bounds):
        for at in _ascending(bounds, count)[start:].tolist():
            if len(found) == most and (bounds[at], at) > found[-1][:2]:
                return [option for _, _, option in found]
            option = price(at)
            insort(found, (option.cost, at, option))
            del found[most:]
        start, count = count, 4 * count
    return [option for _, _, option in found]


def _ascending(bounds: Floats, count: int) -> Ints:
    """Return where the least ones are, the least first; of equal ones the first."""
    if len(bounds) <= count:
        return np.argsort(bounds, kind="stable")
    last = np.partition(bounds, count - 1)[count - 1]
    below = np.flatnonzero(bounds < last)
    below = below[np.argsort(bounds[below], kind="stable")]
    return np.concatenate((below, np.flatnonzero(bounds == last)[: count - len(below)]))


def _kinds(group: Lineup, terms: Terms) -> Ints:
    """Return a number for each target: equal ones get a prompt's KV equally fast."""
    board, rows = group.board, group.rows
    # From where a target could pull matters only where somebody has something to give.
    places = board.places if terms.sources else board.sizes
    kinds = places[rows] * len(group.holdings.overlaps) + group.holdings.of_row[rows]
    for number, (_, source) in enumerate(terms.sources, 1):
        if any(source.overlap[1:]):  # it cannot pull from itself
            kinds[rows == board.row_of[source.target]] = -number
    return kinds


def stalls(group: Lineup, prefill_ms: Floats, terms: Terms) -> Floats:
    prefills = group.board.prefills[group.rows]
    decoding = np.where(prefills, group.load("running"), group.requests())
    share = group.board.speed(lambda one: one.prefill_stalls_decode)[group.rows]
    return decoding * prefill_ms * share * terms.cost.decode_weight


def decodes(request: Request, group: Lineup, terms: Terms) -> Floats:
    context = request.prompt_tokens + terms.expected_output_tokens / 2
    expected = terms.expected_output_tokens
    added_ms = group.board.speed(lambda one: one.added_step_ms(context) * expected)[group.rows]
    return group.requests() * added_ms * terms.cost.decode_weight


def rooms(request: Request, group: Lineup, terms: Terms) -> Floats:
    """As if all blocks of the prompt were in use by others already, where blocks may run out."""
    total, used = group.board.total_blocks[group.rows], group.load("used_blocks")
    tokens = request.prompt_tokens + terms.expected_output_tokens
    shared = np.where(scarce(request, group), len(request.chain) // HASH_BYTES, 0.0)
    missing = used + tokens / terms.block_size - shared - total
    waits = (total > 0) & (missing > 0) & (used > 0)
    if not waits.any():
        return np.zeros(len(group))
    return np.where(waits, missing / np.maximum(used, 1.0) * _step_ms(group), 0.0) * (
        terms.expected_output_tokens
    )


def scarce(request: Request, group: Lineup) -> Flags:
    """Return where blocks may run out: what a prompt shares there is looked up (fleet.py)."""
    total, used = group.board.total_blocks[group.rows], group.load("used_blocks")
    needed = used + 2 * (len(request.chain) // HASH_BYTES)
    found: Flags = (total > 0) & (total < needed)
    return found


def _step_ms(group: Lineup) -> Floats:
    speed, rows = group.board.speed, group.rows
    return (
        speed(lambda one: one.step_ms)[rows]
        + group.load("running") * speed(lambda one: one.decode_ms_per_seq)[rows]
        + group.load("kv_tokens") * speed(lambda one: one.decode_ms_per_kv_token)[rows]
    )
