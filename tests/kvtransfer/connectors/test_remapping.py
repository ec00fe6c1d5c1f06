"""Blocks that go from one number of ranks, or one layout, to another, against plain numpy."""

import itertools

import numpy as np
import pytest

from stafette.kvtransfer.connectors.p2p.messages import Give, Take
from stafette.kvtransfer.layout import AXES, BlockLayout

PATIENCE_S = 20.0
LAYERS, HEADS, TOKENS, DIM = 3, 4, 4, 2
NUM_BLOCKS = 32


def layouts_of(ranks: int, order: str = AXES, heads: int = HEADS) -> list[BlockLayout]:
    """Return each rank's share; with more ranks than heads, neighbours hold the same head."""
    each = max(1, heads // ranks)
    firsts = [rank * heads // ranks for rank in range(ranks)]
    return [
        BlockLayout(LAYERS, each, TOKENS, DIM, "float16", first_head=first, order=order)
        for first in firsts
    ]


def content(block: int, layout: BlockLayout) -> np.ndarray:
    """Return a share of a block in which every number tells its place in the whole."""
    sizes = dict(zip(AXES, (LAYERS, 2, HEADS, TOKENS, DIM), strict=True))
    whole = block * 1000 + np.arange(np.prod(list(sizes.values()))).reshape(tuple(sizes.values()))
    layers = slice(layout.first_layer, layout.first_layer + layout.num_layers)
    heads = slice(layout.first_head, layout.first_head + layout.num_heads)
    share = whole[layers, :, heads].transpose([AXES.index(axis) for axis in layout.order])
    return np.ascontiguousarray(share).astype(np.uint16)


def fill(worker, layouts) -> None:
    for pool, layout in zip(worker.pools, layouts, strict=True):
        for block in range(len(pool)):
            pool[block] = content(block, layout).reshape(-1).view(np.uint8)


def check(worker, layouts, into, source) -> None:
    for pool, layout in zip(worker.pools, layouts, strict=True):
        for mine, theirs in zip(into, source, strict=True):
            wanted = content(theirs, layout).reshape(-1).view(np.uint8)
            assert np.array_equal(pool[mine], wanted)
        others = np.setdiff1d(np.arange(len(pool)), into)
        assert not pool[others].any()


CASES = [
    *itertools.product([(1, 2), (2, 1), (2, 4), (4, 2), (1, 4), (2, 2)], ["LKHTD"], ["LKHTD"]),
    ((1, 1), "LKTHD", "LKHTD"),
    ((2, 1), "LKTHD", "LKHTD"),
    ((1, 2), "LKHTD", "KLTHD"),
    ((4, 2), "LKHTD", "LKHDT"),
]


@pytest.mark.parametrize(("ranks", "theirs", "ours"), CASES)
def test_blocks_come_out_as_the_readers_layout_has_them(
    make_worker, request_of, ranks, theirs, ours
):
    """All ranks of a side are in one process."""
    sources, targets = layouts_of(ranks[0], theirs), layouts_of(ranks[1], ours)
    owner, reader = make_worker("owner", sources), make_worker("reader", targets)
    fill(owner, sources)
    owner.agent.add_peer(reader.agent.metadata())
    taken = request_of(5, Take("h1", ("owner",)).params())

    load = reader.connector.start_load(reader.connector.begin(taken, 0, [9, 2, 30, 4, 17]))
    owner.save(request_of(5, Give("h1", ("reader",)).params()), 0, [3, 31, 8, 6, 20])

    assert load.wait_settled(PATIENCE_S)
    assert load.error is None
    check(reader, targets, [9, 2, 30, 4, 17], [3, 31, 8, 6, 20])


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_ranks_that_are_processes_of_their_own_each_send_and_take_their_share(
    make_worker, request_of, ranks
):
    """Every rank has an agent and a connector; block numbers are the same on all of a side."""
    sources, targets = layouts_of(ranks[0]), layouts_of(ranks[1])
    owners = [
        make_worker(f"owner.{rank}", (layout,), rank=rank, num_ranks=ranks[0])
        for rank, layout in enumerate(sources)
    ]
    readers = [make_worker(f"reader.{rank}", (layout,)) for rank, layout in enumerate(targets)]
    for owner, layout in zip(owners, sources, strict=True):
        fill(owner, [layout])
        for reader in readers:
            owner.agent.add_peer(reader.agent.metadata())
    give = Give("h1", tuple(reader.agent.config.name for reader in readers)).params()
    take = Take("h1", tuple(owner.agent.config.name for owner in owners)).params()
    taken = request_of(5, take)

    loads = [
        r.connector.start_load(r.connector.begin(taken, 0, [9, 2, 30, 4, 17])) for r in readers
    ]
    for first, blocks in ((0, [3, 31]), (2, [8, 6, 20])):
        for owner in owners:
            owner.save(request_of(5, give), first, blocks)

    for reader, load, layout in zip(readers, loads, targets, strict=True):
        assert load.wait_settled(PATIENCE_S)
        assert load.error is None
        check(reader, [layout], [9, 2, 30, 4, 17], [3, 31, 8, 6, 20])


def test_a_head_that_several_ranks_hold_is_read_once(make_worker, request_of):
    sources, targets = layouts_of(4, heads=2), layouts_of(1, heads=2)
    owner, reader = make_worker("owner", sources), make_worker("reader", targets)
    fill(owner, sources)
    owner.agent.add_peer(reader.agent.metadata())
    taken = request_of(2, Take("h1", ("owner",)).params())

    load = reader.connector.start_load(reader.connector.begin(taken, 0, [0, 1]))
    owner.save(request_of(2, Give("h1", ("reader",)).params()), 0, [5, 6])

    assert load.wait_settled(PATIENCE_S)
    check(reader, targets, [0, 1], [5, 6])
    assert reader.agent.stats().transfers["shm"].nbytes == 2 * targets[0].block_bytes


def test_a_share_that_nobody_holds_ends_the_load_and_names_it(make_worker, request_of):
    sources, targets = layouts_of(2)[:1], layouts_of(1)
    owner, reader = make_worker("owner", sources), make_worker("reader", targets)
    owner.agent.add_peer(reader.agent.metadata())
    taken = request_of(2, Take("h1", ("owner",)).params())

    load = reader.connector.start_load(reader.connector.begin(taken, 0, [0, 1]))
    owner.save(request_of(2, Give("h1", ("reader",)).params()), 0, [5, 6])

    assert load.wait_settled(PATIENCE_S)
    assert "layer 0, head 2" in str(load.error)
