"""The two ways to run experts, against each other."""

import torch

from stafette.workers.models.linear import dense_kernel
from stafette.workers.models.moe import GroupedExperts, LoopedExperts


def test_one_grouped_kernel_gives_what_the_loop_gives():
    torch.manual_seed(0)
    gate_up = (torch.randn(5, 2 * 16, 32) / 6).bfloat16()
    down = (torch.randn(5, 32, 16) / 4).bfloat16()
    counts = torch.tensor([3, 0, 4, 1, 0])
    x = torch.randn(8, 32).bfloat16()

    looped = LoopedExperts([dense_kernel(w) for w in gate_up], [dense_kernel(w) for w in down])
    grouped = GroupedExperts(gate_up, down)

    torch.testing.assert_close(grouped(x, counts), looped(x, counts), atol=2e-2, rtol=2e-2)
