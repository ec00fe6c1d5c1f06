"""Parts that several kernels share."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def wait(EARLY: tl.constexpr):
    """Let the next kernel start, and wait until all before this one have ended.

    A kernel that is launched EARLY (programmatic dependent launch, Hopper and newer) runs while the
    one before it still does. Ahead of `wait` it may load weights; it must touch nothing that
    another kernel writes or still reads. So launches cost no pause, and weights stream on.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
