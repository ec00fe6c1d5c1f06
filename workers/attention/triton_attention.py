"""The GPU backend of our own: paged attention in Triton, see triton_kernels.

A sequence with one query in the step is served by the split kernel, whatever shares its batch; the
others by the prefill kernel. Splits depend on the sequence's own length alone, so a decoded token's
attention is bit for bit the same in every batch. Nothing is read on the host: CUDA graphs hold it.

With TRITON_INTERPRET=1 in the environment the kernels run on a CPU, slowly and exactly: for tests.
"""

import math
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch

from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata, AttentionShape
from stafette.workers.gpu.launching import early, interpreting, options, power_of_2

_LOG2_E = math.log2(math.e)
_MIN_SPLIT = 256  # tokens: below it, starting a program costs more than reading
_SPLIT_PROGRAMS = 256  # that many share the KV heads of a long context: two on each SM
_PROGRAMS_PER_SM = 4  # of the decode kernel; more of them take turns at the splits
_FP8_CAPABILITY = (8, 9)
_MAX_HEAD_DIM = 256
_LEAST_ROWS = 16  # of a tensor core product


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a kernel is cut: query rows, tokens at a time, and what the compiler makes of it."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


class TritonAttention(AttentionBackend):
    """Needs CUDA (an fp8 pool: Ada, Hopper or newer); float32, bfloat16 and float16."""

    name = "triton"
    recordable = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._kernels = load_kernels()
        self._group = shape.num_heads // shape.num_kv_heads
        self._max_splits = min(128, max(16, _SPLIT_PROGRAMS // shape.num_kv_heads))

    @classmethod
    def why_not(cls, shape: AttentionShape, device: torch.device, kv_dtype: str) -> str | None:
        if device.type != "cuda" and not interpreting():
            return "it needs a CUDA device"
        if shape.head_dim > _MAX_HEAD_DIM:
            return f"head_dim {shape.head_dim} is above {_MAX_HEAD_DIM}"
        if device.type == "cuda" and kv_dtype == "fp8":
            capability = torch.cuda.get_device_capability(device)
            if capability < _FP8_CAPABILITY:
                return f"an fp8 pool needs compute capability 8.9, this device has {capability}"
        try:
            load_kernels()
        except ImportError as error:
            return f"it is not installed ({error})"
        return None

    def write(
        self, k: torch.Tensor, v: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> None:
        shape = self.shape
        strides = *k.stride()[:2], *v.stride()[:2], *layer_kv.stride()[:3]
        self._kernels.store_kv[(len(k),)](
            k,
            v,
            layer_kv,
            meta.slots,
            *strides,
            HEADS=shape.num_kv_heads,
            HEADS_PADDED=power_of_2(shape.num_kv_heads),
            PAGE=shape.block_size,
            FP8=layer_kv.dtype == torch.float8_e4m3fn,
            **self._dims(),
            **early(k.device),
            **options(4, 1),
        )

    def attend(
        self, q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> torch.Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        splits = self._num_splits(meta.max_context_len)
        if splits == 1:
            self._decode(q, layer_kv, meta, out, None)
        else:
            self._decode_in_splits(q, layer_kv, meta, out, splits)
        if meta.max_query_len > 1:
            self._prefill(q, layer_kv, meta, out)
        return out

    def _decode_in_splits(
        self,
        q: torch.Tensor,
        layer_kv: torch.Tensor,
        meta: AttentionMetadata,
        out: torch.Tensor,
        splits: int,
    ) -> None:
        shape, seqs = self.shape, len(meta.context_lens)
        sizes = seqs, shape.num_heads, splits
        parts = q.new_empty((*sizes, shape.head_dim), dtype=torch.float32)
        lse = q.new_empty(sizes, dtype=torch.float32)
        self._decode(q, layer_kv, meta, parts, lse)
        self._kernels.merge_splits[(seqs, shape.num_heads)](
            parts,
            lse,
            meta.query_starts,
            meta.context_lens,
            out,
            out.stride(0),
            splits,
            CHUNK=16,
            **self._splitting(q.dtype),
            **self._dims(),
            **early(q.device),
            **options(4, 1),
        )

    def _decode(
        self,
        q: torch.Tensor,
        layer_kv: torch.Tensor,
        meta: AttentionMetadata,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Serve the sequences of one query; programs of the others end at once."""
        shape, seqs = self.shape, len(meta.context_lens)
        splits = 1 if lse is None else lse.shape[2]
        programs = _PROGRAMS_PER_SM * _num_sms(q.device) // (seqs * shape.num_kv_heads)
        tiles = decode_tiles(shape.head_dim, q.dtype)
        self._kernels.decode[(seqs, shape.num_kv_heads, min(splits, max(1, programs)))](
            *_inputs(q, layer_kv, meta),
            out,
            out if lse is None else lse,
            splits,
            shape.scale * _LOG2_E,
            *_strides(q, layer_kv, meta),
            out.stride(0),
            ROWS=max(tiles.rows, _padded(self._group)),
            WHOLE=lse is None,
            **self._splitting(q.dtype),
            **self._reading(q.dtype),
            **early(q.device),
            **options(tiles.num_warps, tiles.num_stages),
        )

    def _prefill(
        self, q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata, out: torch.Tensor
    ) -> None:
        shape, seqs = self.shape, len(meta.context_lens)
        tiles = prefill_tiles(shape.head_dim, q.dtype)
        rows = max(tiles.rows, _padded(self._group))
        blocks = len(q) // (rows // self._group) + seqs
        self._kernels.prefill[(blocks, shape.num_kv_heads)](
            *_inputs(q, layer_kv, meta),
            out,
            seqs,
            shape.scale * _LOG2_E,
            *_strides(q, layer_kv, meta),
            out.stride(0),
            ROWS=rows,
            TILE=tiles.tokens,
            WINDOW=shape.sliding_window or 0,
            **self._reading(q.dtype),
            **options(tiles.num_warps, tiles.num_stages),
        )

    def _num_splits(self, context_len: int) -> int:
        """Return how many splits the longest context may have."""
        if self.shape.sliding_window is not None:
            context_len = min(context_len, self.shape.sliding_window + _MIN_SPLIT)
        return min(self._max_splits, max(1, -(-context_len // _MIN_SPLIT)))

    def _splitting(self, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "HEADS": self.shape.num_heads,
            "TILE": decode_tiles(self.shape.head_dim, dtype).tokens,
            "SPLIT": _MIN_SPLIT,
            "MAX_SPLITS": self._max_splits,
            "WINDOW": self.shape.sliding_window or 0,
        }

    def _reading(self, dtype: torch.dtype) -> dict[str, Any]:
        product = torch.float32 if interpreting() else dtype  # interpreted bfloat16 dots are wrong
        return {
            "GROUP": self._group,
            "PAGE": self.shape.block_size,
            "COMPUTE": _dtypes()[product],
            **self._dims(),
        }

    def _dims(self) -> dict[str, Any]:
        return {"DIM": self.shape.head_dim, "DIM_PADDED": _padded(self.shape.head_dim)}


def load_kernels() -> ModuleType:
    """Import Triton only where it is used: an engine on a CPU does without."""
    from stafette.workers.attention import triton_kernels

    return triton_kernels


def _padded(size: int) -> int:
    """Return the power of two that holds `size`, and that tl.dot takes."""
    return max(_LEAST_ROWS, power_of_2(size))


def decode_tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    """Each of three programs on an SM has two tiles of K and V on their way from memory.

    The page numbers are a load of their own: two of the five stages are spent on them.
    """
    if head_dim > 128 or _plain(dtype):
        return Tiles(rows=_LEAST_ROWS, tokens=32, num_warps=4, num_stages=3)
    return Tiles(rows=_LEAST_ROWS, tokens=64, num_warps=4, num_stages=5)


def prefill_tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    """128 rows feed Hopper's wgmma from shared memory; float32 must save registers."""
    if _plain(dtype):
        return Tiles(32 if head_dim <= 64 else 16, 32 if head_dim <= 128 else 16, 4, 3)
    if head_dim > 128:
        return Tiles(rows=128, tokens=32, num_warps=8, num_stages=3)
    return Tiles(rows=128, tokens=64, num_warps=8, num_stages=5)


def _plain(dtype: torch.dtype) -> bool:
    """Whether products are float32. The interpreter takes the tiles of the others, to test them."""
    return dtype == torch.float32 and not interpreting()


def _dtypes() -> dict[torch.dtype, Any]:
    from stafette.workers.gpu.shared_kernels import DTYPES

    return DTYPES


@cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # the interpreter: few programs, so that each takes several splits
    return torch.cuda.get_device_properties(device).multi_processor_count


def _inputs(
    q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
) -> tuple[torch.Tensor, ...]:
    return q, layer_kv, meta.block_tables, meta.query_starts, meta.context_lens


def _strides(q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata) -> tuple[int, ...]:
    return *q.stride()[:2], meta.block_tables.stride(0), *layer_kv.stride()[:3]
