"""Writes tiny GGUF files, field by field, so that tests can also write wrong ones."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

STRING, ARRAY = 8, 9
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q6_K": 14}
ALIGNMENT = 32


@dataclass
class GgufDraft:
    """A file to be: metadata as (type, value) or plain values, tensors as (shape, kind, bytes)."""

    metadata: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)
    version: int = 3
    magic: bytes = b"GGUF"

    def add(self, name: str, tensor: torch.Tensor) -> None:
        data = tensor.detach().float().contiguous().numpy()
        self.tensors[name] = (data.shape, 0, data.tobytes())

    def add_packed(self, name: str, shape: tuple[int, ...], kind: int, data: bytes) -> None:
        self.tensors[name] = (shape, kind, data)

    def to_bytes(self) -> bytes:
        head = self.magic + struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))
        for key, value in self.metadata.items():
            head += _text(key) + _value(value)
        data = b""
        for name, (shape, kind, raw) in self.tensors.items():
            head += _text(name) + struct.pack("<I", len(shape))
            head += b"".join(struct.pack("<Q", size) for size in reversed(shape))
            head += struct.pack("<IQ", kind, len(data))
            data += raw + b"\0" * (-len(raw) % ALIGNMENT)
        return head + b"\0" * (-len(head) % ALIGNMENT) + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.to_bytes())
        return path


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    head = struct.pack("<I", ARRAY)
    if value and isinstance(value[0], str):
        return head + struct.pack("<IQ", STRING, len(value)) + b"".join(map(_text, value))
    dtype, number = (np.float32, 6) if isinstance(value[0], float) else (np.int32, 5)
    return head + struct.pack("<IQ", number, len(value)) + np.array(value, dtype).tobytes()


GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Order a q or k matrix as converters do for Llama."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def draft_of(model) -> GgufDraft:
    """Return a Hugging Face model as llama.cpp's converter would write it, in F32."""
    config, draft = model.config, GgufDraft()
    arch = {"mistral": "llama", "qwen3_moe": "qwen3moe"}.get(config.model_type, config.model_type)
    draft.metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    if arch == "qwen3moe":
        draft.metadata |= {
            f"{arch}.expert_count": config.num_experts,
            f"{arch}.expert_used_count": config.num_experts_per_tok,
            f"{arch}.expert_feed_forward_length": config.moe_intermediate_size,
        }
    for name, tensor in model.state_dict().items():
        _add_tensor(draft, config, name, tensor)
    return draft


def _add_tensor(draft: GgufDraft, config, name: str, tensor: torch.Tensor) -> None:
    base, _, ending = name.rpartition(".")
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if base in top:
        if not (base == "lm_head" and config.tie_word_embeddings):
            draft.add(f"{top[base]}.{ending}", tensor)
        return
    layer, part = base.removeprefix("model.layers.").split(".", 1)
    if part == "mlp.experts":  # Hugging Face stacks them; GGUF too, but gate and up apart
        if ending == "down_proj":
            draft.add(f"blk.{layer}.ffn_down_exps.weight", tensor)
            return
        for name, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
            draft.add(f"blk.{layer}.ffn_{name}_exps.weight", half)
        return
    if config.model_type in ("llama", "mistral") and part.endswith(("q_proj", "k_proj")):
        queries = part.endswith("q_proj")
        heads = config.num_attention_heads if queries else config.num_key_value_heads
        tensor = interleaved(tensor, heads)
    draft.add(f"blk.{layer}.{GGUF_PARTS[part]}.{ending}", tensor)


@pytest.fixture
def empty_draft() -> GgufDraft:
    return GgufDraft()


@pytest.fixture(scope="session")
def draft_gguf():
    """The function that turns a Hugging Face model into a draft."""
    return draft_of


@pytest.fixture
def tiny_draft() -> GgufDraft:
    """A Llama of one layer, 32 wide, that opens as it is."""
    arch = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    draft = GgufDraft({"general.architecture": "llama"})
    draft.metadata |= {f"llama.{key}": value for key, value in arch.items()}
    shapes = {
        "token_embd": (10, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        draft.add(f"{name}.weight", torch.randn(shape, generator=generator))
    return draft
