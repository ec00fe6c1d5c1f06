"""Joins ranks of one host into a group that can add and gather tensors."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from stafette.workers.models.sharding import TensorParallel

_LOOPBACK = "127.0.0.1"
_dist: Any = torch.distributed  # its type stubs lack the groups and the store


def open_meeting(timeout_s: float) -> Any:
    """Return the store at which ranks meet, on a free port of this host."""
    wait = timedelta(seconds=timeout_s)
    return _dist.TCPStore(_LOOPBACK, 0, is_master=True, timeout=wait, wait_for_workers=False)


def attend_meeting(port: int, timeout_s: float) -> Any:
    return _dist.TCPStore(_LOOPBACK, port, is_master=False, timeout=timedelta(seconds=timeout_s))


def join(
    store: Any, rank: int, size: int, device: torch.device, timeout_s: float
) -> TensorParallel:
    """Return this rank's part once all have come: NCCL between GPUs, gloo between CPUs."""
    wait = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        nccl = _dist.ProcessGroupNCCL
        options = nccl.Options()
        options._timeout = wait
        return TensorParallel(rank, size, nccl(store, rank, size, options))
    gloo = _dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=_LOOPBACK)]
    options._timeout = wait
    return TensorParallel(rank, size, gloo(store, rank, size, options))
