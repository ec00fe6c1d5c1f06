"""Re-mapping between layouts, against a whole KV cache that every rank cuts its share out of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.errors import Incompatible, InvalidValue, MalformedMessage
from stafette.kvtransfer.layout import AXES, BlockLayout, plan

LAYERS, HEADS, TOKENS, DIM = 3, 4, 2, 5
ORDERS = st.permutations(AXES).map("".join)


def share(first_head, num_heads, order=AXES, first_layer=0, num_layers=LAYERS) -> BlockLayout:
    return BlockLayout(
        num_layers, num_heads, TOKENS, DIM, "float16", first_layer, first_head, order
    )


def rank(number, degree, order=AXES) -> BlockLayout:
    """Return a rank of a tensor-parallel group; with more ranks than heads they repeat."""
    each = max(1, HEADS // degree)
    return share(number * HEADS // degree, each, order)


def pool_of(layout, cache):
    """Return the blocks of a rank, cut out of the whole cache [blocks, L, K, H, T, D]."""
    layers = slice(layout.first_layer, layout.first_layer + layout.num_layers)
    heads = slice(layout.first_head, layout.first_head + layout.num_heads)
    axes = [0, *(1 + AXES.index(axis) for axis in layout.order)]
    return np.ascontiguousarray(cache[:, layers, :, heads].transpose(axes))


def pull(reader, sources, cache):
    """Return the reader's pool after the copies of its plan; block i comes from num_blocks-1-i."""
    mine = np.zeros_like(pool_of(reader, cache))
    numbers = list(range(len(cache)))
    for piece in plan(reader, sources):
        pool = pool_of(sources[piece.source], cache).view(np.uint8).reshape(-1)
        into, out_of = piece.of_blocks(("mine", numbers[::-1]), ("theirs", numbers))
        target = mine.view(np.uint8).reshape(-1)
        for there, here, length in zip(out_of.offsets, into.offsets, into.lengths, strict=True):
            target[int(here) : int(here + length)] = pool[int(there) : int(there + length)]
    return mine[::-1]


@pytest.fixture(scope="module")
def cache():
    shape = (3, LAYERS, 2, HEADS, TOKENS, DIM)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float16)


@pytest.mark.parametrize("reading", [1, 2, 4, 8])
@pytest.mark.parametrize("serving", [1, 2, 4, 8])
def test_reader_of_another_degree_gets_its_own_heads(cache, serving, reading):
    sources = {f"rank {i}": rank(i, serving) for i in range(serving)}

    for number in range(reading):
        reader = rank(number, reading)
        assert (pull(reader, sources, cache) == pool_of(reader, cache)).all()


@given(mine=ORDERS, theirs=ORDERS, degrees=st.sampled_from([(1, 2), (2, 1), (2, 4), (1, 1)]))
def test_reader_of_another_order_of_axes_gets_the_same_numbers(cache, mine, theirs, degrees):
    serving, reading = degrees
    sources = {f"rank {i}": rank(i, serving, theirs) for i in range(serving)}
    reader = rank(reading - 1, reading, mine)

    assert (pull(reader, sources, cache) == pool_of(reader, cache)).all()


def test_layers_that_are_spread_over_ranks_come_together(cache):
    stages = {
        "early": share(0, HEADS, first_layer=0, num_layers=1),
        "late": share(0, HEADS, first_layer=1, num_layers=2),
    }
    reader = share(1, 2)

    assert (pull(reader, stages, cache) == pool_of(reader, cache)).all()


def test_head_that_several_ranks_hold_is_read_once():
    sources = {f"rank {i}": rank(i, 8) for i in range(8)}
    reader = rank(0, 1)

    pieces = plan(reader, sources)

    assert [piece.source for piece in pieces] == ["rank 0", "rank 2", "rank 4", "rank 6"]
    assert sum(piece.into.total_bytes for piece in pieces) == reader.block_bytes


def test_equal_layouts_move_whole_blocks():
    (piece,) = plan(rank(0, 1), {"peer": rank(0, 1)})

    assert len(piece.into) == 1
    assert piece.into.total_bytes == rank(0, 1).block_bytes


def test_half_of_the_heads_is_one_range_for_each_of_k_and_v_in_each_layer():
    (piece,) = plan(rank(1, 2), {"peer": rank(0, 1)})

    assert len(piece.out_of) == 2 * LAYERS


def test_share_that_nobody_holds_is_named():
    with pytest.raises(Incompatible, match="layer 0, head 2"):
        plan(rank(0, 1), {"half": share(0, 2)})


@pytest.mark.parametrize("field", ["block_size", "head_dim", "dtype"])
def test_what_cannot_be_remapped_is_refused(field):
    other = {"block_size": 8, "head_dim": 7, "dtype": "float32"}[field]
    fields = {"block_size": TOKENS, "head_dim": DIM, "dtype": "float16", field: other}
    source = BlockLayout(LAYERS, HEADS, **fields)

    with pytest.raises(Incompatible, match=f"peer has {field} {other}"):
        plan(rank(0, 1), {"peer": source})


def test_wire_form_gives_back_the_layout():
    layout = share(2, 2, "LKTHD", 1, 2)

    assert BlockLayout.read(layout.pack()) == layout
    for bad in (None, [1], [*layout.pack()[:-1], 7]):
        with pytest.raises(MalformedMessage):
            BlockLayout.read(bad)


@pytest.mark.parametrize(
    "change", [{"dtype": "int3"}, {"order": "LKHT"}, {"num_heads": 0}, {"head_dim": -1}]
)
def test_layout_that_makes_no_sense_is_refused(change):
    fields = {"num_layers": 1, "num_heads": 1, "block_size": 1, "head_dim": 1, "dtype": "fp8"}

    with pytest.raises(InvalidValue, match=f"layout.{next(iter(change))}"):
        BlockLayout(**fields | change)
