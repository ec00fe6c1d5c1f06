"""The contract of an attention backend: write this step's K and V, attend over the paged pool."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What does not change between steps."""

    num_heads: int  # of this rank
    num_kv_heads: int
    head_dim: int
    block_size: int
    scale: float
    sliding_window: int | None = None


@dataclass(slots=True)
class AttentionMetadata:
    """Where a step's tokens stand; made once a step, shared by its layers."""

    query_starts: torch.Tensor  # int32 [sequences + 1]
    context_lens: torch.Tensor  # int32 [sequences]: KV length after this step
    block_tables: torch.Tensor  # int32 [sequences, width]
    slots: torch.Tensor  # int64 [tokens]; -1 is a padded row: nothing is written
    max_query_len: int
    max_context_len: int
    sequences: tuple[int, ...] | None = None  # who they are from step to step, where it is known
    plan: object = None  # a backend's own notes on this step, made at its first layer


class AttentionBackend(ABC):
    """Its results depend on its shape and what it is given; `layer_kv` is one layer of the pool.

    layer_kv: [num_blocks, 2, num_kv_heads, block_size, head_dim], a strided view whose last two
    dimensions are contiguous; q: [tokens, num_heads, head_dim]; k, v: [tokens, num_kv_heads,
    head_dim]. These three may be views of which only the last dimension is contiguous.
    Query i of a sequence sees context positions <= context_len - query_len + i.
    """

    name: str
    recordable = False  # whether a CUDA graph can hold it: it never reads a tensor on the host
    beside_pool = 0.0  # what it takes of the device's memory beside the pool, as a share of that

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape

    @classmethod
    @abstractmethod
    def why_not(cls, shape: AttentionShape, device: torch.device, kv_dtype: str) -> str | None:
        """Return None when this backend can serve here, else the reason why it cannot."""

    @abstractmethod
    def write(
        self, k: torch.Tensor, v: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> None:
        """Store k and v at meta.slots."""

    @abstractmethod
    def attend(
        self, q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> torch.Tensor:
        """Return [tokens, num_heads, head_dim]: causal attention over each sequence's context."""
