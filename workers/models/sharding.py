"""One rank's part in tensor parallelism: which heads and columns it has, and how ranks add up."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from stafette.workers.errors import ConfigError
from stafette.workers.models.spec import ModelSpec


class Group(Protocol):
    """What torch's process groups offer, whichever library they stand for."""

    def allreduce(self, tensors: list[torch.Tensor]) -> Any: ...

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor]) -> Any: ...


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """Rank `rank` of `size`. Of size 1 it talks to nobody, and its reductions cost nothing."""

    rank: int = 0
    size: int = 1
    group: Group | None = None
    leads_node: bool = True  # the first of the ranks on its host

    def span(self, units: int) -> tuple[int, int]:
        """Return the units [start, stop) of this rank; fewer units than ranks are shared."""
        start = self.rank * units // self.size
        return start, start + max(1, units // self.size)

    def count(self, units: int) -> int:
        return max(1, units // self.size)

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        if self.group is not None:
            self.group.allreduce([partial]).wait()
        return partial

    def all_gather(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the ranks' columns side by side."""
        if self.group is None:
            return columns
        pieces = [torch.empty_like(columns) for _ in range(self.size)]
        self.group.allgather([pieces], [columns.contiguous()]).wait()
        return torch.cat(pieces, dim=-1)


SOLO = TensorParallel()


def check_shardable(spec: ModelSpec, size: int) -> None:
    """Raise ConfigError, naming the sizes that work, when `size` ranks cannot share the model."""
    if not _divides(spec, size):
        able = [str(n) for n in range(1, spec.num_heads + 1) if _divides(spec, n)]
        remedy = f"does not divide this model's heads; set it to one of {', '.join(able)}"
        raise ConfigError("tensor_parallel_size", size, remedy)


def _divides(spec: ModelSpec, size: int) -> bool:
    kv_heads = spec.num_kv_heads
    widths = [spec.intermediate_size] + ([spec.moe.intermediate_size] if spec.moe else [])
    return (
        spec.num_heads % size == 0
        and (kv_heads % size == 0 or size % kv_heads == 0)
        and all(width % size == 0 for width in widths)
    )
