"""Puts blocks into the order of their chains, and tells of them in few events."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.events import BlockRemoved, BlockStored, Tier
from stafette.kvtransfer.tiers.cache import Entry

_MOST_REMOVED = 1 << 16  # blocks in one event


def in_runs(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Return the entries in runs of one chain, each parent before its children."""
    known = {entry.key: entry for entry in entries}
    children: defaultdict[bytes, list[Entry]] = defaultdict(list)
    for entry in known.values():
        children[entry.parent].append(entry)
    starts = [entry for entry in known.values() if entry.parent not in known]
    return [run for start in starts for run in _runs_below(start, children)]


def stored(entries: Sequence[Entry], tier: Tier) -> list[BlockStored]:
    """Return the events for blocks that can be found now."""
    return [
        BlockStored(
            None if run[0].parent == ROOT else run[0].parent,
            tuple(entry.key for entry in run),
            tier,
        )
        for run in in_runs(entries)
    ]


def removed(entries: Sequence[Entry], tier: Tier) -> Iterator[BlockRemoved]:
    """Yield the events for blocks that can be found no more; none is too large to be sent."""
    for first in range(0, len(entries), _MOST_REMOVED):
        some = entries[first : first + _MOST_REMOVED]
        yield BlockRemoved(tuple(entry.key for entry in some), tier)


def _runs_below(start: Entry, children: dict[bytes, list[Entry]]) -> Iterator[list[Entry]]:
    heads = [start]
    while heads:
        run = [heads.pop()]
        while below := children.get(run[-1].key):
            run.append(below[0])
            heads += below[1:]
        yield run
