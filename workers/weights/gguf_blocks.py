"""How the bytes of GGUF's block formats become a GroupedWeight or a tensor.

Blocks of 32 keep their codes, scale and offset exactly; formats that GroupedWeight cannot hold go
through the `gguf` package, which is imported when the first one is met.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from stafette.workers.weights.checkpoint import GROUP, Bits, GroupedWeight, Weight
from stafette.workers.weights.gguf_formats import FORMATS

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_K_SCALE_BYTES = 12  # eight 6-bit scales and eight 6-bit minima
_LOW_NIBBLES = np.uint16(0x0F0F)
_NIBBLE = np.uint16(4)


DENSE: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def decode(kind: int, rows: Bytes) -> Weight:
    """Return a matrix given as [rows, bytes of a row]; the copy in `rows` may be shared."""
    name = FORMATS[kind].name
    if name in DENSE:
        return torch.from_numpy(rows).view(DENSE[name])
    if name in _GROUPED:
        return _GROUPED[name](rows)
    return _through_package(kind, rows)


def _q4_0(rows: Bytes) -> GroupedWeight:
    blocks = rows.view(np.dtype([("d", "<f2"), ("codes", "V16")]))
    scale = blocks["d"].astype(np.float32)
    return GroupedWeight(4, _pair_nibbles(blocks["codes"]), scale, scale * np.float32(-8))


def _q4_1(rows: Bytes) -> GroupedWeight:
    blocks = rows.view(np.dtype([("d", "<f2"), ("m", "<f2"), ("codes", "V16")]))
    scale, offset = blocks["d"].astype(np.float32), blocks["m"].astype(np.float32)
    return GroupedWeight(4, _pair_nibbles(blocks["codes"]), scale, offset)


def _q8_0(rows: Bytes) -> GroupedWeight:
    blocks = rows.view(np.dtype([("d", "<f2"), ("codes", "i1", (GROUP,))]))
    codes = np.ascontiguousarray(blocks["codes"]).reshape(len(rows), -1)
    return GroupedWeight(8, codes, blocks["d"].astype(np.float32), None)


def _q5_0(rows: Bytes) -> GroupedWeight:
    blocks = rows.view(np.dtype([("d", "<f2"), ("high", "u1", (4,)), ("low", "u1", (16,))]))
    codes = _five_bits(blocks["high"], blocks["low"]) - np.int8(16)
    return GroupedWeight(8, codes.reshape(len(rows), -1), blocks["d"].astype(np.float32), None)


def _q5_1(rows: Bytes) -> GroupedWeight:
    fields = [("d", "<f2"), ("m", "<f2"), ("high", "u1", (4,)), ("low", "u1", (16,))]
    blocks = rows.view(np.dtype(fields))
    codes = _five_bits(blocks["high"], blocks["low"]).reshape(len(rows), -1)
    scale, offset = blocks["d"].astype(np.float32), blocks["m"].astype(np.float32)
    return GroupedWeight(8, codes, scale, offset)


def _q4_k(rows: Bytes) -> GroupedWeight:
    fields = [("d", "<f2"), ("m", "<f2"), ("s", "u1", (_K_SCALE_BYTES,)), ("codes", "u1", (128,))]
    blocks = rows.view(np.dtype(fields))
    pairs = blocks["codes"].reshape(*blocks.shape, 4, 1, 32)  # 32 low nibbles, then 32 high ones
    nibbles = np.concatenate((pairs & 0x0F, pairs >> 4), axis=-2)
    codes = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return _k_weight(4, codes.reshape(len(rows), -1), blocks)


def _q5_k(rows: Bytes) -> GroupedWeight:
    fields = [("d", "<f2"), ("m", "<f2"), ("s", "u1", (_K_SCALE_BYTES,))]
    blocks = rows.view(np.dtype([*fields, ("high", "u1", (32,)), ("low", "u1", (128,))]))
    pairs = blocks["low"].reshape(*blocks.shape, 4, 1, 32)
    low = np.concatenate((pairs & 0x0F, pairs >> 4), axis=-2).reshape(*blocks.shape, 8, 32)
    bit = np.arange(8, dtype=np.uint8)[:, None]  # group g has its fifth bits at bit g
    high = (blocks["high"][..., None, :] >> bit) & 1
    codes = (low | (high << 4)).astype(np.int8)
    return _k_weight(8, codes.reshape(len(rows), -1), blocks)


_GROUPED: dict[str, Callable[[Bytes], GroupedWeight]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
}


def _pair_nibbles(blocks: npt.NDArray[np.void]) -> Bytes:
    """Repack [rows, blocks] of 16 bytes: ggml pairs elements j and j + 16, we 2j and 2j + 1."""
    pairs = np.ascontiguousarray(blocks).view(np.uint16)
    packed = np.empty((*blocks.shape, 16), np.uint8)
    halves = packed.view(np.uint64).reshape(-1, 2)
    halves[:, 0] = _join_nibbles(pairs & _LOW_NIBBLES)
    pairs >>= _NIBBLE
    pairs &= _LOW_NIBBLES
    halves[:, 1] = _join_nibbles(pairs)
    return packed.reshape(len(blocks), -1)


def _join_nibbles(pairs: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint64]:
    """Turn 0x0b0a into 0xba; eight of them make one row of the answer."""
    pairs |= pairs >> _NIBBLE
    return pairs.astype(np.uint8).view(np.uint64).reshape(-1)


def _five_bits(high: Bytes, low: Bytes) -> npt.NDArray[np.int8]:
    """Return codes 0..31, [..., 32], of nibbles and their fifth bits."""
    nibbles = np.concatenate((low & 0x0F, low >> 4), axis=-1)
    fifth = np.unpackbits(np.ascontiguousarray(high), axis=-1, bitorder="little")
    codes: npt.NDArray[np.int8] = (nibbles | (fifth << 4)).astype(np.int8)
    return codes


def _k_weight(bits: Bits, codes: npt.NDArray[np.generic], blocks: np.ndarray) -> GroupedWeight:
    scales, minima = _k_scales(blocks["s"])
    scale = blocks["d"].astype(np.float32)[..., None] * scales
    offset = blocks["m"].astype(np.float32)[..., None] * minima
    rows = len(blocks)
    return GroupedWeight(bits, codes, scale.reshape(rows, -1), -offset.reshape(rows, -1))


def _k_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Unpack eight 6-bit scales and minima: four plain, four split over nibbles and top bits."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate((first & 0x3F, (third & 0x0F) | ((first >> 6) << 4)), axis=-1)
    minima = np.concatenate((second & 0x3F, (third >> 4) | ((second >> 6) << 4)), axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _through_package(kind: int, rows: Bytes) -> torch.Tensor:
    from gguf import GGMLQuantizationType, dequantize

    return torch.from_numpy(dequantize(rows, GGMLQuantizationType(kind)))
