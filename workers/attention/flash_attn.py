"""Attention by the flash-attn libraries: FA3, FA4 (the CuTe wheel) or FA2, whichever is there.

All three read the paged pool as [blocks, block_size, num_kv_heads, head_dim], which a transposed
view of a layer is. None stores K and V at slots, and none reads an fp8 pool beside wider queries.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module

import torch

from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata, AttentionShape
from stafette.workers.attention.reference import ReferenceAttention
from stafette.workers.attention.triton_attention import TritonAttention
from stafette.workers.gpu.launching import applies

Capability = tuple[int, int]

_PAGE_MULTIPLE = 256  # of FA2


class Library(ABC):
    """One generation of flash-attn: where it is found, what it can do, how it is called."""

    name: str
    module: str
    function: str
    splits_contexts = True  # whether many SMs share the context of one query

    def __init__(self) -> None:
        self._call: Callable[..., torch.Tensor] = getattr(import_module(self.module), self.function)

    @classmethod
    @abstractmethod
    def why_not(cls, shape: AttentionShape, capability: Capability) -> str | None: ...

    @abstractmethod
    def attend(
        self,
        q: torch.Tensor,
        layer_kv: torch.Tensor,
        meta: AttentionMetadata,
        shape: AttentionShape,
    ) -> torch.Tensor: ...


class FlashAttention3(Library):
    """Built from the hopper folder of its repository; there is no wheel on PyPI."""

    name = "FA3"
    module, function = "flash_attn_interface", "flash_attn_with_kvcache"

    @classmethod
    def why_not(cls, shape: AttentionShape, capability: Capability) -> str | None:
        return None if capability[0] == 9 else "FA3 is for Hopper"

    def attend(
        self,
        q: torch.Tensor,
        layer_kv: torch.Tensor,
        meta: AttentionMetadata,
        shape: AttentionShape,
    ) -> torch.Tensor:
        keys, values = _pages(layer_kv)
        return self._call(
            q,
            keys,
            values,
            cache_seqlens=meta.context_lens,
            page_table=meta.block_tables,
            cu_seqlens_q=meta.query_starts,
            max_seqlen_q=meta.max_query_len,
            softmax_scale=shape.scale,
            causal=True,
            window_size=_window(shape, -1),
        )


class FlashAttention4(Library):
    """PyPI's flash-attn-4, for Hopper and Blackwell. On Hopper it cannot split a context."""

    name = "FA4"
    module, function = "flash_attn.cute", "flash_attn_varlen_func"
    splits_contexts = False

    @classmethod
    def why_not(cls, shape: AttentionShape, capability: Capability) -> str | None:
        if capability[0] not in (9, 10, 11):
            return "FA4 reads a paged pool on compute capability 9 to 11 only"
        if capability[0] > 9 and shape.head_dim > 128 and shape.head_dim != 256:
            return f"FA4 on Blackwell has no head_dim {shape.head_dim}"
        return None

    def attend(
        self,
        q: torch.Tensor,
        layer_kv: torch.Tensor,
        meta: AttentionMetadata,
        shape: AttentionShape,
    ) -> torch.Tensor:
        keys, values = _pages(layer_kv)
        answer = self._call(
            q,
            keys,
            values,
            cu_seqlens_q=meta.query_starts,
            max_seqlen_q=meta.max_query_len,
            seqused_k=meta.context_lens,
            page_table=meta.block_tables,
            softmax_scale=shape.scale,
            causal=True,
            window_size=_window(shape, None),
        )
        return answer[0] if isinstance(answer, tuple) else answer


class FlashAttention2(Library):
    """PyPI's flash-attn; 2.8.3 takes pages of whole multiples of 256 tokens only."""

    name = "FA2"
    module, function = "flash_attn", "flash_attn_varlen_func"

    @classmethod
    def why_not(cls, shape: AttentionShape, capability: Capability) -> str | None:
        if capability[0] < 8:
            return "FA2 needs compute capability 8"
        if shape.block_size % _PAGE_MULTIPLE:
            return f"FA2 needs a block_size of {_PAGE_MULTIPLE}, this is {shape.block_size}"
        return None

    def attend(
        self,
        q: torch.Tensor,
        layer_kv: torch.Tensor,
        meta: AttentionMetadata,
        shape: AttentionShape,
    ) -> torch.Tensor:
        keys, values = _pages(layer_kv)
        if not isinstance(meta.plan, torch.Tensor):
            ends = meta.context_lens.cumsum(0, dtype=torch.int32)
            meta.plan = torch.cat((torch.zeros_like(ends[:1]), ends))
        return self._call(
            q,
            keys,
            values,
            cu_seqlens_q=meta.query_starts,
            cu_seqlens_k=meta.plan,
            max_seqlen_q=meta.max_query_len,
            max_seqlen_k=meta.max_context_len,
            softmax_scale=shape.scale,
            causal=True,
            window_size=_window(shape, -1),
            block_table=meta.block_tables,
        )


LIBRARIES: tuple[type[Library], ...] = (FlashAttention3, FlashAttention4, FlashAttention2)


class FlashAttention(AttentionBackend):
    """Needs CUDA, a flash-attn, and 16-bit K and V. Where the library is slow at decode, Triton."""

    name = "flash_attn"
    recordable = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._library = _first(shape, _capability())[0]
        self._store: AttentionBackend | None = None

    @classmethod
    def why_not(cls, shape: AttentionShape, device: torch.device, kv_dtype: str) -> str | None:
        if device.type != "cuda":
            return "it needs a CUDA device"
        if kv_dtype not in ("bfloat16", "float16"):
            return f"it reads bfloat16 and float16, not {kv_dtype}"
        if shape.head_dim % 8 or shape.head_dim > 256:
            return f"head_dim {shape.head_dim} is not a multiple of 8 up to 256"
        library, reasons = _first(shape, _capability())
        return None if library is not None else "; ".join(reasons)

    def write(
        self, k: torch.Tensor, v: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> None:
        self._stores(k).write(k, v, layer_kv, meta)

    def attend(
        self, q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> torch.Tensor:
        library = self._library
        assert library is not None, "why_not comes first"
        if meta.max_query_len == 1 and applies(q) and not library.splits_contexts:
            return self._stores(q).attend(q, layer_kv, meta)
        return library.attend(q.to(layer_kv.dtype), layer_kv, meta, self.shape).to(q.dtype)

    def _stores(self, tensor: torch.Tensor) -> AttentionBackend:
        """Return what stores K and V: no flash-attn does that at slots."""
        if self._store is None:
            kind = TritonAttention if applies(tensor) else ReferenceAttention
            self._store = kind(self.shape)
        return self._store


def _first(shape: AttentionShape, capability: Capability) -> tuple[Library | None, list[str]]:
    """Return the first library that can serve, and why those before it cannot."""
    reasons: list[str] = []
    for kind in LIBRARIES:
        reason = kind.why_not(shape, capability)
        if reason is None:
            try:
                return kind(), reasons
            except (ImportError, AttributeError) as error:
                reason = f"{kind.name} is not installed ({error})"
        reasons.append(reason)
    return None, reasons


def _pages(layer_kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V as [blocks, block_size, num_kv_heads, head_dim], without a copy."""
    keys, values = layer_kv.transpose(2, 3).unbind(1)
    return keys, values


def _window(shape: AttentionShape, everything: int | None) -> tuple[int | None, int | None]:
    """Return how far a query sees to the left and right, itself not counted."""
    if shape.sliding_window is None:
        return everything, everything
    return shape.sliding_window - 1, 0


def _capability() -> Capability:
    return torch.cuda.get_device_capability()
