"""How many KV blocks an engine gets: what the flags ask for, or what the memory allows."""

from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, OutOfMemory
from stafette.workers.runner.runner import KvLayout

GIB = 1 << 30
CPU_DEFAULT_BYTES = 4 * GIB  # a laptop has other things to do with its memory


def num_kv_blocks(
    config: EngineConfig, layout: KvLayout, free_bytes: int, on_cpu: bool, max_model_len: int
) -> int:
    """Return the pool's size in blocks; an error names the flag that makes one sequence fit."""
    needed = -(-max_model_len // layout.block_size)
    if config.num_kv_blocks is not None:
        blocks = config.num_kv_blocks
        _check_fits(blocks * layout.block_bytes, free_bytes, blocks)
    else:
        wanted = needed * config.max_num_seqs  # more than that could never be used at once
        blocks = min(wanted, _budget(config, free_bytes, on_cpu) // layout.block_bytes)
    if blocks < needed:
        _refuse(config, layout, blocks, needed, max_model_len)
    return blocks


def _budget(config: EngineConfig, free_bytes: int, on_cpu: bool) -> int:
    if config.kv_cache_memory_bytes is not None:
        _check_fits(config.kv_cache_memory_bytes, free_bytes, None)
        return config.kv_cache_memory_bytes
    share = int(free_bytes * config.gpu_memory_utilization)
    return min(share, CPU_DEFAULT_BYTES) if on_cpu else share


def _check_fits(asked: int, free_bytes: int, blocks: int | None) -> None:
    if asked <= free_bytes:
        return
    field = "kv_cache_memory_bytes" if blocks is None else "num_kv_blocks"
    value = asked if blocks is None else blocks
    most = free_bytes if blocks is None else blocks * free_bytes // asked
    remedy = f"{asked / GIB:.2f} GiB of KV cache, {free_bytes / GIB:.2f} free: lower it to {most}"
    raise OutOfMemory(field, value, remedy)


def _refuse(
    config: EngineConfig, layout: KvLayout, blocks: int, needed: int, max_model_len: int
) -> None:
    fitting = blocks * layout.block_size
    lower = f"or lower max_model_len from {max_model_len} to {fitting}" if fitting else ""
    if config.num_kv_blocks is not None:
        remedy = f"one sequence of max_model_len needs {needed}: raise it {lower}"
        raise ConfigError("num_kv_blocks", blocks, remedy.rstrip())
    if config.kv_cache_memory_bytes is not None:
        remedy = f"one sequence needs {needed * layout.block_bytes} bytes: raise it {lower}"
        raise ConfigError("kv_cache_memory_bytes", config.kv_cache_memory_bytes, remedy.rstrip())
    remedy = f"leaves room for {blocks} KV blocks of the {needed} that one sequence needs"
    raise OutOfMemory("gpu_memory_utilization", config.gpu_memory_utilization, f"{remedy} {lower}")
