"""The contract between the engine and whatever turns tokens into logits on a device."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stafette.kvtransfer.connectors.connector import KvShare
from stafette.kvtransfer.layout import BlockLayout
from stafette.workers.errors import ConfigError
from stafette.workers.models.spec import ModelSpec

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class KvLayout:
    """One KV block in memory: [num_layers, 2 (K, V), num_kv_heads, block_size, head_dim].

    The pool is [num_blocks, *block]: a block is one extent, a head's share of a layer another,
    so that blocks travel in one copy and a tensor-parallel peer can take its heads only.
    """

    num_layers: int
    num_kv_heads: int  # of this rank
    block_size: int
    head_dim: int
    dtype: str  # bfloat16 | float16 | float32 | fp8
    first_kv_head: int = 0  # of the model's

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim

    @property
    def block_bytes(self) -> int:
        width = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}[self.dtype]
        return int(np.prod(self.shape)) * width


@dataclass(frozen=True, slots=True)
class KvMemory:
    """A rank's pool as a transfer agent of this process takes it."""

    buffer: object
    layout: KvLayout


def block_layout(layout: KvLayout) -> BlockLayout:
    """Return the layout of an engine's blocks as peers know it."""
    return BlockLayout(
        layout.num_layers,
        layout.num_kv_heads,
        layout.block_size,
        layout.head_dim,
        layout.dtype,
        first_head=layout.first_kv_head,
    )


def kv_share(memory: KvMemory) -> KvShare:
    return KvShare(memory.buffer, block_layout(memory.layout))


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step, flattened: the tokens of all its sequences one after the other."""

    token_ids: Int32s  # [tokens]
    positions: Int32s  # [tokens]
    query_starts: Int32s  # [sequences + 1], into token_ids
    context_lens: Int32s  # [sequences]: KV length after this step
    block_tables: Int32s  # [sequences, width]; entries past the context are 0
    logit_rows: Int32s  # [rows], into token_ids: which tokens' logits are wanted
    lora_slots: Int32s | None = None  # [sequences]; -1: no adapter
    hidden_rows: Int32s = field(default_factory=lambda: np.empty(0, np.int32))
    sequences: tuple[int, ...] | None = None  # who they are from step to step; negative: nobody

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_seqs(self) -> int:
        return len(self.context_lens)

    def slots(self, block_size: int) -> npt.NDArray[np.int64]:
        """Return where each token's KV goes: block * block_size + offset."""
        lengths = np.diff(self.query_starts)
        rows = np.repeat(np.arange(self.num_seqs), lengths)
        blocks = self.block_tables[rows, self.positions // block_size].astype(np.int64)
        return blocks * block_size + self.positions % block_size


@dataclass(frozen=True, slots=True)
class StepTensors:
    """What a forward pass gives back."""

    logits: torch.Tensor  # float32 [rows, vocab]; valid until the next forward
    hidden: torch.Tensor | None = None  # float32 [hidden_rows, hidden], after the final norm


class Runner(ABC):
    """A model on a device, with its KV pool. Called from one thread at a time."""

    spec: ModelSpec
    kv_layout: KvLayout
    device: torch.device

    @abstractmethod
    def free_bytes(self) -> int:
        """Return the memory that a KV pool could take on this device, weights loaded."""

    @abstractmethod
    def allocate_kv(self, num_blocks: int) -> None:
        """Make the pool. OutOfMemory when the device has not that much."""

    @abstractmethod
    def kv_pool(self) -> torch.Tensor:
        """Return the pool, [num_blocks, *kv_layout.shape]: what transfers read and write."""

    def kv_memory(self) -> object:
        """Return the pool as a transfer agent takes it: with `share_kv_memory`, best for peers."""
        return self.kv_pool()

    def kv_memories(self) -> list[KvMemory]:
        """Return the pools of this node's ranks, to each of which this process can write."""
        return [KvMemory(self.kv_memory(), self.kv_layout)]

    def open_members(self, settings: Callable[[int, int], dict[str, Any]]) -> list[bytes]:
        """Let the other nodes hand over their shares; return the metadata of their agents.

        `settings` tells what a node is told, by its number and that of all nodes.
        """
        return []

    def wait_for_kv(self) -> None:
        """Return when all that the steps so far have written to the pool can be read by others."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    @abstractmethod
    def forward(self, inputs: StepInputs) -> StepTensors:
        """Run one step: write its KV, return the logits that were asked for."""

    @abstractmethod
    def warm_up(self) -> None:
        """Do once what would make the first request slow."""

    @abstractmethod
    def close(self) -> None:
        """Free the device's memory. Safe to call twice."""

    def add_lora(self, slot: int, path: str) -> None:
        """Load the adapter in this folder; StepInputs.lora_slots names it by its slot."""
        raise ConfigError("enable_lora", True, "this runner serves no adapters; use runner=torch")

    def remove_lora(self, slot: int) -> None:
        """Forget the slot's adapter; no running sequence may use it."""
        raise ConfigError("enable_lora", True, "this runner serves no adapters; use runner=torch")
