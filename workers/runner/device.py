"""Where a model runs, and in which dtypes: `device`, `dtype` and `kv_cache_dtype` resolved."""

import psutil
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError
from stafette.workers.models.spec import ModelSpec

TORCH_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8": torch.float8_e4m3fn,
}


def choose_device(config: EngineConfig) -> torch.device:
    if config.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if config.device == "cuda":
        raise ConfigError("device", "cuda", "torch sees no CUDA device here; use cpu or auto")
    return torch.device("cpu")


def choose_dtype(config: EngineConfig, spec: ModelSpec, device: torch.device) -> torch.dtype:
    """Return what the flag says; else the checkpoint's on a GPU, and what is fast on this CPU."""
    if config.dtype != "auto":
        return TORCH_DTYPES[config.dtype]
    if device.type == "cuda":
        return TORCH_DTYPES[spec.dtype]
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def choose_kv_dtype(config: EngineConfig, dtype: torch.dtype) -> str:
    """Return the pool's dtype by name; `auto` is the model's."""
    if config.kv_cache_dtype != "auto":
        return config.kv_cache_dtype
    return next(name for name, each in TORCH_DTYPES.items() if each == dtype)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products; without them float32 is faster."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def free_device_bytes(device: torch.device) -> int:
    """Return what could be allocated now, torch's own idle cache included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + idle
    return psutil.virtual_memory().available
