"""How much memory KV blocks take, how many fit, and how long they travel.

Plain arithmetic, for planning: `stafette kv-size` prints it. A rank of a tensor-parallel worker
holds its share of the heads; where there are more ranks than heads, several hold the same one.
"""

from dataclasses import dataclass

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.layout import DTYPE_BYTES, BlockLayout

_UNITS = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for base, unit in ((1000, "B"), (1024, "iB"))
    for power, prefix in enumerate("KMGTP", start=1)
}


@dataclass(frozen=True, slots=True)
class KvShape:
    """What a model caches of one token."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise InvalidValue(name, getattr(self, name), "must be at least 1")
        if self.dtype not in DTYPE_BYTES:
            raise InvalidValue("dtype", self.dtype, f"must be one of {', '.join(DTYPE_BYTES)}")


def heads_per_rank(shape: KvShape, tp: int = 1) -> int:
    """Return how many heads one of `tp` ranks holds."""
    if tp < 1:
        raise InvalidValue("tp", tp, "must be at least 1")
    large, small = max(tp, shape.num_kv_heads), min(tp, shape.num_kv_heads)
    if large % small:
        remedy = f"must divide the {shape.num_kv_heads} KV heads, or be a multiple of them"
        raise InvalidValue("tp", tp, remedy)
    return max(1, shape.num_kv_heads // tp)


def block_layout(shape: KvShape, block_size: int, tp: int = 1) -> BlockLayout:
    """Return one rank's share of a block."""
    heads = heads_per_rank(shape, tp)
    return BlockLayout(shape.num_layers, heads, block_size, shape.head_dim, shape.dtype)


def block_bytes(shape: KvShape, block_size: int, tp: int = 1) -> int:
    """Return the bytes of a block, on one rank."""
    return block_layout(shape, block_size, tp).block_bytes


def token_bytes(shape: KvShape, tp: int = 1) -> int:
    """Return the bytes of a token, on one rank."""
    return block_bytes(shape, 1, tp)


def blocks_of(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold so many tokens; the last may be partly empty."""
    return -(-num_tokens // block_size)


def blocks_in(capacity_bytes: int, bytes_of_block: int) -> int:
    """Return how many whole blocks fit."""
    if capacity_bytes < 0:
        raise InvalidValue("capacity_bytes", capacity_bytes, "must not be below 0")
    return capacity_bytes // bytes_of_block


def transfer_s(num_bytes: int, gb_per_s: float) -> float:
    """Return how many seconds bytes travel, at 1e9 bytes per GB."""
    if not gb_per_s > 0:
        raise InvalidValue("gb_per_s", gb_per_s, "must be above 0")
    return num_bytes / (gb_per_s * 1e9)


def parse_bytes(text: str) -> int:
    """Read a size: 123, 80GiB, 1.5TB."""
    digits = text.strip().rstrip("BiKMGTP")
    unit = text.strip()[len(digits) :]
    try:
        number = float(digits)
        if unit not in _UNITS or not number >= 0:
            raise ValueError
    except ValueError:
        raise InvalidValue("size", text, "must be a number of bytes, or such as 80GiB") from None
    return int(number * _UNITS[unit])


def format_bytes(num_bytes: float) -> str:
    """Return a size with four digits at most and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if num_bytes < 1024 or unit == "TiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:,.4g} {unit}"
