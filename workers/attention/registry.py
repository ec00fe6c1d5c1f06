"""Names the attention backends, imports them lazily, and picks the best that can serve."""

from importlib import import_module

import torch

from stafette.workers.attention.backend import AttentionBackend, AttentionShape
from stafette.workers.errors import ConfigError

# Best first: `auto` takes the first that can serve.
BACKENDS = {
    "cpu": ("stafette.workers.attention.cpu", "CpuAttention"),
    "triton": ("stafette.workers.attention.triton_attention", "TritonAttention"),
    "flash_attn": ("stafette.workers.attention.flash_attn", "FlashAttention"),
    "torch": ("stafette.workers.attention.torch_attention", "TorchAttention"),
    "reference": ("stafette.workers.attention.reference", "ReferenceAttention"),
}


def choose(
    name: str, shape: AttentionShape, device: torch.device, kv_dtype: str
) -> type[AttentionBackend]:
    """Return the backend called `name`, or for `auto` the best one; ConfigError says why not."""
    if name == "auto":
        return _best(shape, device, kv_dtype)
    if name not in BACKENDS:
        remedy = f"there are auto, {', '.join(BACKENDS)}"
        raise ConfigError("attention_backend", name, remedy)
    reason = why_not(name, shape, device, kv_dtype)
    if reason is not None:
        raise ConfigError("attention_backend", name, f"cannot serve here: {reason}")
    return load(name)


def why_not(name: str, shape: AttentionShape, device: torch.device, kv_dtype: str) -> str | None:
    """Return None when the backend can serve, else the reason why it cannot."""
    try:
        backend = load(name)
    except ImportError as error:
        return f"it is not installed ({error})"
    return backend.why_not(shape, device, kv_dtype)


def load(name: str) -> type[AttentionBackend]:
    module, class_name = BACKENDS[name]
    backend: type[AttentionBackend] = getattr(import_module(module), class_name)
    return backend


def _best(shape: AttentionShape, device: torch.device, kv_dtype: str) -> type[AttentionBackend]:
    reasons = []
    for name in BACKENDS:
        reason = why_not(name, shape, device, kv_dtype)
        if reason is None:
            return load(name)
        reasons.append(f"{name}: {reason}")
    raise ConfigError("attention_backend", "auto", f"none can serve here; {'; '.join(reasons)}")
