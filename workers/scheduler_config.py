"""What the scheduler knows of the flags and of the model, and what it refuses of them."""

from dataclasses import dataclass

from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The scheduler's share of the engine's flags, and what it must know of the model."""

    max_model_len: int
    eos_token_ids: frozenset[int]
    max_num_batched_tokens: int
    max_num_seqs: int
    enable_chunked_prefill: bool
    continuous_batching: bool
    preallocate_kv: bool
    priority_step_s: float
    speculative_tokens: int

    @classmethod
    def of(
        cls, config: EngineConfig, max_model_len: int, eos_token_ids: tuple[int, ...]
    ) -> "SchedulerConfig":
        if config.speculative_tokens and config.async_scheduling:
            remedy = "needs each token before the next step: set async_scheduling to false"
            raise ConfigError("speculative_tokens", config.speculative_tokens, remedy)
        return cls(
            max_model_len=max_model_len,
            eos_token_ids=frozenset(eos_token_ids),
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            enable_chunked_prefill=config.enable_chunked_prefill,
            continuous_batching=config.continuous_batching,
            preallocate_kv=config.preallocate_kv,
            priority_step_s=config.priority_step_s,
            speculative_tokens=config.speculative_tokens,
        )


def check_capacity(num_blocks: int, block_size: int, max_model_len: int) -> None:
    """Raise ConfigError when one sequence of `max_model_len` would not fit."""
    needed = -(-max_model_len // block_size)
    if num_blocks < needed:
        remedy = f"one sequence of max_model_len needs {needed}: raise it, or lower max_model_len "
        raise ConfigError("num_kv_blocks", num_blocks, f"{remedy}to {num_blocks * block_size}")
