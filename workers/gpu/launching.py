"""How kernels are launched. Imports no Triton: an engine on a CPU does without."""

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

_EARLY_CAPABILITY = (9, 0)  # Hopper


@cache
def interpreting() -> bool:
    """Whether Triton was told to run kernels on the CPU. It reads the variable when imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(device: torch.device) -> bool:
    """Whether our kernels run there."""
    return (device.type == "cuda" or interpreting()) and installed()


def applies(x: torch.Tensor) -> bool:
    """Whether our kernels run where `x` is."""
    return runs_on(x.device)


@cache
def installed() -> bool:
    return find_spec("triton") is not None


def options(num_warps: int, num_stages: int) -> dict[str, Any]:
    """Return what the compiler is told; the interpreter ignores it."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


@cache
def early(device: torch.device) -> dict[str, Any]:
    """Return how a kernel is told that it may start before the last one ends, where it may."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _EARLY_CAPABILITY
    return {"EARLY": True, "launch_pdl": True} if able else {"EARLY": False}


def power_of_2(size: int) -> int:
    """Return the least power of two that holds `size`."""
    return 1 << (size - 1).bit_length()
