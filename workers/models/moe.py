"""A sparse feed-forward: each token goes to a few experts, each expert takes its tokens at once."""

import torch
from torch.nn import functional

from stafette.workers.models.layers import Step, swiglu
from stafette.workers.models.linear import Kernel, dense_kernel
from stafette.workers.models.loading import Matrix, WeightLoader
from stafette.workers.models.spec import MoeSpec


class SparseFeedForward:
    """The router picks experts per token; tokens are sorted by expert, so each runs once."""

    def __init__(self, weights: WeightLoader, moe: MoeSpec) -> None:
        own = weights.within("mlp.")
        self._moe, self._tp = moe, weights.tp
        self._router = own.whole(Matrix("gate", moe.num_experts, weights.spec.hidden_size))
        gate_up, down = _load_experts(own, moe)
        self._experts = _make_experts(gate_up, down)

    def __call__(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        chosen, shares = self._route(x)
        order = chosen.flatten().argsort(stable=True)
        tokens = order // self._moe.experts_per_token
        counts = torch.zeros(self._moe.num_experts, dtype=torch.int64, device=x.device)
        counts.scatter_add_(0, chosen.flatten(), torch.ones_like(chosen.flatten()))
        answers = self._experts(x[tokens], counts)
        out = torch.zeros_like(x)
        out.index_add_(0, tokens, answers * shares.flatten()[order, None])
        return self._tp.all_reduce(out)

    @property
    def recordable(self) -> bool:
        return isinstance(self._experts, GroupedExperts)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's experts and their shares in its answer."""
        scores = self._router(x).float().softmax(dim=-1)
        shares, chosen = scores.topk(self._moe.experts_per_token, dim=-1)
        if self._moe.norm_topk_prob:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        return chosen, shares.to(x.dtype)


class LoopedExperts:
    """One product after the other, over the experts that have tokens."""

    def __init__(self, gate_up: list[Kernel], down: list[Kernel]) -> None:
        self._gate_up, self._down = gate_up, down

    def __call__(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        pieces = zip(torch.split(x, counts.tolist()), self._gate_up, self._down, strict=True)
        return torch.cat(
            [down(swiglu(up(rows))) if len(rows) else rows for rows, up, down in pieces]
        )


class GroupedExperts:
    """All experts in one kernel. The host never reads the counts, so a CUDA graph can hold it."""

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor) -> None:
        self._gate_up, self._down = gate_up.transpose(1, 2), down.transpose(1, 2)

    def __call__(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        ends = counts.cumsum(0, dtype=torch.int32)
        inner = swiglu(functional.grouped_mm(x, self._gate_up, offs=ends))
        return functional.grouped_mm(inner, self._down, offs=ends)


def _load_experts(own: WeightLoader, moe: MoeSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gate and up [experts, 2 * width, hidden], and down [experts, hidden, width]."""
    hidden, width = own.spec.hidden_size, moe.intermediate_size
    keep = slice(*own.tp.span(width))
    gate_up, down = [], []
    for index in range(moe.num_experts):
        expert = own.within(f"experts.{index}.")
        gate = expert.table("gate_proj.weight", width, hidden)[keep]
        up = expert.table("up_proj.weight", width, hidden)[keep]
        gate_up.append(torch.cat((gate, up)))
        down.append(expert.table("down_proj.weight", hidden, width)[:, keep].contiguous())
    return torch.stack(gate_up), torch.stack(down)


def _make_experts(gate_up: torch.Tensor, down: torch.Tensor) -> LoopedExperts | GroupedExperts:
    if gate_up.device.type == "cuda" and gate_up.dtype == torch.bfloat16:
        return GroupedExperts(gate_up, down)
    return LoopedExperts([dense_kernel(w) for w in gate_up], [dense_kernel(w) for w in down])
