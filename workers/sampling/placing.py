"""Picks the operations for the device on which logits are."""

import torch

from stafette.workers.sampling.device_logits import DeviceLogits
from stafette.workers.sampling.host_logits import HostLogits
from stafette.workers.sampling.logits import Logits


def wrap(logits: torch.Tensor) -> Logits:
    """Return these logits with the operations of their device; nothing is copied."""
    if logits.device.type == "cpu":
        return HostLogits(logits.numpy())
    return DeviceLogits(logits)
