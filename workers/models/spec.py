"""A model's shape, free of any format: what a config.json and a GGUF header both come down to."""

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary positions, in the half-split (Hugging Face) order of a head's elements."""

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: derived from factor


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """A sparse feed-forward: `experts_per_token` of `num_experts` answer each token."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int  # of one expert
    norm_topk_prob: bool
    dense_layers: tuple[int, ...] = ()  # layers that keep a plain feed-forward


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Everything that the layers need to know of a decoder."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeSpec
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool = False  # on q, k and v
    qk_norm: bool = False  # RMS norm over each head of q and k, before rope
    sliding_window: int | None = None
    moe: MoeSpec | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"  # the checkpoint's own
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def is_sparse(self, layer: int) -> bool:
        return self.moe is not None and layer not in self.moe.dense_layers
