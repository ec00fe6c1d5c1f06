"""What lies where in a KV block, and which ranges a reader with another layout copies.

A rank holds some layers and some heads of each block. A reader whose share, or order of axes, is
another gets its bytes re-mapped on the way: the plan is a list of ranges for every rank that it
reads from. A head that several ranks hold (fewer heads than ranks) is read from one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import Incompatible, InvalidValue, MalformedMessage
from stafette.kvtransfer.extents import Extents, merge_pairs
from stafette.kvtransfer.strict import text, whole

Int64s = npt.NDArray[np.int64]

AXES = "LKHTD"  # layers, K and V, heads, tokens, head dimension: outermost first
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
_NUM_KV = 2
_U31_END = 1 << 31


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """One rank's share of a block, which lies in one piece of `block_bytes`."""

    num_layers: int
    num_heads: int
    block_size: int  # tokens
    head_dim: int
    dtype: str
    first_layer: int = 0  # of the model's
    first_head: int = 0
    order: str = AXES

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise InvalidValue("layout.dtype", self.dtype, f"must be of {', '.join(DTYPE_BYTES)}")
        if sorted(self.order) != sorted(AXES):
            raise InvalidValue(
                "layout.order", self.order, f"must be the letters {AXES} in any order"
            )
        for name in ("num_layers", "num_heads", "block_size", "head_dim"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"layout.{name}", getattr(self, name), "must be at least 1")

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes, in this layout's order."""
        return tuple(self._sizes()[axis] for axis in self.order)

    @property
    def block_bytes(self) -> int:
        return int(np.prod(self.shape)) * DTYPE_BYTES[self.dtype]

    def strides(self) -> dict[str, int]:
        """Return the bytes from one index to the next, for each axis."""
        strides, step = {}, DTYPE_BYTES[self.dtype]
        for axis in reversed(self.order):
            strides[axis] = step
            step *= self._sizes()[axis]
        return strides

    def pack(self) -> list[object]:
        return list(astuple(self))

    @classmethod
    def read(cls, value: object) -> "BlockLayout":
        match value:
            case [layers, heads, block_size, head_dim, dtype, first_layer, first_head, order]:
                try:
                    return cls(
                        whole(layers, "layers", _U31_END),
                        whole(heads, "heads", _U31_END),
                        whole(block_size, "block size", _U31_END),
                        whole(head_dim, "head dim", _U31_END),
                        text(dtype, "dtype", 16),
                        whole(first_layer, "first layer", _U31_END),
                        whole(first_head, "first head", _U31_END),
                        text(order, "order", len(AXES)),
                    )
                except InvalidValue as error:
                    raise MalformedMessage("layout", str(error)) from None
        raise MalformedMessage("layout", "its eight fields")

    def _sizes(self) -> dict[str, int]:
        sizes = (self.num_layers, _NUM_KV, self.num_heads, self.block_size, self.head_dim)
        return dict(zip(AXES, sizes, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What a reader takes from one source: ranges within a block, the same for every block."""

    source: str
    into: Extents
    out_of: Extents
    into_block_bytes: int
    out_of_block_bytes: int

    def of_blocks(
        self, local: tuple[str, Sequence[int]], remote: tuple[str, Sequence[int]]
    ) -> tuple[Extents, Extents]:
        """Return the ranges for whole lists of blocks, each side's (region, block numbers)."""
        return (
            _repeat(self.into, local, self.into_block_bytes),
            _repeat(self.out_of, remote, self.out_of_block_bytes),
        )


def plan(reader: BlockLayout, sources: Mapping[str, BlockLayout]) -> list[Piece]:
    """Return how a reader's blocks are put together; the sources are preferred in their order."""
    missing = np.ones((reader.num_layers, reader.num_heads), bool)
    pieces = []
    for name, source in sources.items():
        _check_alike(name, reader, source)
        cells = np.argwhere(missing & _held(reader, source))
        if len(cells):
            missing[cells[:, 0], cells[:, 1]] = False
            pieces.append(_piece(name, reader, source, cells))
    if missing.any():
        layer, head = (int(index) for index in np.argwhere(missing)[0])
        what = f"layer {layer + reader.first_layer}, head {head + reader.first_head}"
        raise Incompatible(", ".join(sources) or "nobody", "share", what, "no rank that holds it")
    return pieces


def _check_alike(name: str, reader: BlockLayout, source: BlockLayout) -> None:
    for field in ("block_size", "head_dim", "dtype"):
        ours, theirs = getattr(reader, field), getattr(source, field)
        if ours != theirs:
            raise Incompatible(name, field, str(ours), str(theirs))


def _held(reader: BlockLayout, source: BlockLayout) -> npt.NDArray[np.bool_]:
    """Return which of the reader's (layer, head) cells the source has."""
    layers = np.arange(reader.num_layers) + reader.first_layer - source.first_layer
    heads = np.arange(reader.num_heads) + reader.first_head - source.first_head
    has_layer = (layers >= 0) & (layers < source.num_layers)
    has_head = (heads >= 0) & (heads < source.num_heads)
    held: npt.NDArray[np.bool_] = has_layer[:, None] & has_head[None, :]
    return held


def _piece(name: str, reader: BlockLayout, source: BlockLayout, cells: Int64s) -> Piece:
    shift = [reader.first_layer - source.first_layer, reader.first_head - source.first_head]
    run = _run_bytes(reader, source)
    mine, theirs = _places(reader, cells, run), _places(source, cells + shift, run)
    order = np.argsort(mine, kind="stable")
    lengths = np.full(len(mine), run, np.uint64)
    into = Extents("", mine[order].astype(np.uint64), lengths)
    out_of = Extents("", theirs[order].astype(np.uint64), lengths)
    into, out_of = merge_pairs(into, out_of)
    return Piece(name, into, out_of, reader.block_bytes, source.block_bytes)


def _run_bytes(reader: BlockLayout, source: BlockLayout) -> int:
    """Return the bytes that surely lie together on both sides: a head's vector, or one number."""
    width = DTYPE_BYTES[reader.dtype]
    together = reader.order[-1] == source.order[-1] == "D"
    return reader.head_dim * width if together else width


def _places(layout: BlockLayout, cells: Int64s, run_bytes: int) -> Int64s:
    """Return where in the block each run of the cells begins, in an order free of the layout."""
    strides = layout.strides()
    whole_vectors = run_bytes == layout.head_dim * DTYPE_BYTES[layout.dtype]
    dims = np.zeros(1, np.int64) if whole_vectors else np.arange(layout.head_dim)
    base = cells[:, 0] * strides["L"] + cells[:, 1] * strides["H"]
    kinds = np.arange(_NUM_KV) * strides["K"]
    tokens = np.arange(layout.block_size) * strides["T"]
    places = (
        base[:, None, None, None]
        + kinds[None, :, None, None]
        + tokens[None, None, :, None]
        + (dims * strides["D"])[None, None, None, :]
    )
    flat: Int64s = places.reshape(-1)
    return flat


def _repeat(extents: Extents, where: tuple[str, Sequence[int]], block_bytes: int) -> Extents:
    region, blocks = where
    starts = Extents.of_blocks(region, blocks, block_bytes).offsets
    offsets = (starts[:, None] + extents.offsets[None, :]).reshape(-1)
    return Extents(region, offsets, np.tile(extents.lengths, len(starts)))
