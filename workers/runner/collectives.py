"""Joins ranks into a group that can add and gather tensors."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from stafette.workers.models.sharding import TensorParallel

LOOPBACK = "127.0.0.1"
_dist: Any = torch.distributed  # its type stubs lack the groups and the store


@dataclass(frozen=True, slots=True)
class Seat:
    """Who joins: rank `rank` of `size`, which the others reach at an address of this host."""

    rank: int
    size: int
    host: str = LOOPBACK
    leads_node: bool = False  # the first of the ranks on its host


def open_meeting(host: str, timeout_s: float) -> Any:
    """Return the store at which ranks meet, on a free port of this address."""
    wait = timedelta(seconds=timeout_s)
    return _dist.TCPStore(host, 0, is_master=True, timeout=wait, wait_for_workers=False)


def attend_meeting(host: str, port: int, timeout_s: float) -> Any:
    return _dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))


def join(store: Any, seat: Seat, device: torch.device, timeout_s: float) -> TensorParallel:
    """Return this rank's part once all have come: NCCL between GPUs, gloo between CPUs."""
    wait = timedelta(seconds=timeout_s)
    rank, size, leads = seat.rank, seat.size, seat.leads_node
    if device.type == "cuda":
        nccl = _dist.ProcessGroupNCCL
        options = nccl.Options()
        options._timeout = wait
        return TensorParallel(rank, size, nccl(store, rank, size, options), leads)
    gloo = _dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=seat.host)]
    options._timeout = wait
    return TensorParallel(rank, size, gloo(store, rank, size, options), leads)
