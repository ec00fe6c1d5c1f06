"""Small random models held in memory, for runners that are compared with one another."""

from collections.abc import Iterator

import numpy as np
import torch

from stafette.workers.errors import CheckpointError
from stafette.workers.models.spec import ModelSpec, RopeSpec
from stafette.workers.runner.runner import StepInputs
from stafette.workers.weights.checkpoint import Checkpoint, GroupedWeight, Weight


def toy_spec(**changes) -> ModelSpec:
    values = {
        "architecture": "llama",
        "vocab_size": 99,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "rope": RopeSpec(),
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    return ModelSpec(**(values | changes))


class ToyCheckpoint(Checkpoint):
    """Random weights; `kind` is int4, int4_symmetric, int8, or the name of a torch dtype."""

    def __init__(self, spec: ModelSpec, kind: str = "float32", seed: int = 0) -> None:
        self.spec, self.kind = spec, kind
        self.quantization = "gguf" if kind.startswith("int") else "none"
        self._random = np.random.default_rng(seed)
        self._weights = dict(self._tensors())

    def names(self) -> Iterator[str]:
        return iter(self._weights)

    def load(self, name: str) -> Weight:
        if name not in self._weights:
            raise CheckpointError("tensor", name, "is missing")
        return self._weights[name]

    def replace(self, name: str, weight: Weight) -> None:
        self._weights[name] = weight

    def remove(self, name: str) -> None:
        del self._weights[name]

    def _tensors(self) -> Iterator[tuple[str, Weight]]:
        spec = self.spec
        yield "model.embed_tokens.weight", self._matrix(spec.vocab_size, spec.hidden_size)
        yield "model.norm.weight", self._vector(spec.hidden_size)
        if not spec.tie_word_embeddings:
            yield "lm_head.weight", self._matrix(spec.vocab_size, spec.hidden_size)
        for layer in range(spec.num_layers):
            for name, weight in self._layer():
                yield f"model.layers.{layer}.{name}", weight

    def _layer(self) -> Iterator[tuple[str, Weight]]:
        spec = self.spec
        hidden, q, kv, inner = spec.hidden_size, spec.q_size, spec.kv_size, spec.intermediate_size
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            yield f"self_attn.{name}.weight", self._matrix(rows, hidden)
            if spec.attention_bias:
                yield f"self_attn.{name}.bias", self._vector(rows) - 1
        yield "self_attn.o_proj.weight", self._matrix(hidden, q)
        yield "mlp.gate_proj.weight", self._matrix(inner, hidden)
        yield "mlp.up_proj.weight", self._matrix(inner, hidden)
        yield "mlp.down_proj.weight", self._matrix(hidden, inner)
        yield "input_layernorm.weight", self._vector(hidden)
        yield "post_attention_layernorm.weight", self._vector(hidden)
        if spec.qk_norm:
            yield "self_attn.q_norm.weight", self._vector(spec.head_dim)
            yield "self_attn.k_norm.weight", self._vector(spec.head_dim)

    def _vector(self, size: int) -> torch.Tensor:
        values = 1 + 0.2 * self._random.standard_normal(size)
        return torch.from_numpy(values.astype(np.float32))

    def _matrix(self, rows: int, columns: int) -> Weight:
        deviation = columns**-0.5
        if not self.kind.startswith("int"):
            values = self._random.standard_normal((rows, columns)).astype(np.float32) * deviation
            return torch.from_numpy(values).to(getattr(torch, self.kind))
        groups = rows, columns // 32
        scale = self._random.uniform(0.5, 1.5, groups).astype(np.float32) * np.float32(deviation)
        if self.kind == "int8":
            codes = self._random.integers(-127, 128, (rows, columns), dtype=np.int8)
            return GroupedWeight(8, codes, scale / np.float32(60), None)
        scale /= np.float32(4)
        codes4 = self._random.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
        zero = 8 if self.kind == "int4_symmetric" else self._random.uniform(5, 10, groups)
        return GroupedWeight(4, codes4, scale, (-zero * scale).astype(np.float32))


def int32(values) -> np.ndarray:
    return np.array(values, dtype=np.int32)


class Sequence:
    """Tokens in blocks of a pool, of which a step runs positions start..stop-1."""

    def __init__(self, tokens: list[int], blocks: list[int]) -> None:
        self.tokens, self.blocks = tokens, blocks


def step(parts: list[tuple[Sequence, int, int]], hidden: bool = False) -> StepInputs:
    """Run each sequence's tokens start..stop-1; ask for the logits of every token."""
    lengths = [stop - start for _, start, stop in parts]
    width = max(len(sequence.blocks) for sequence, _, _ in parts)
    tokens = [t for sequence, start, stop in parts for t in sequence.tokens[start:stop]]
    rows = int32(range(len(tokens)))
    return StepInputs(
        token_ids=int32(tokens),
        positions=int32([p for _, start, stop in parts for p in range(start, stop)]),
        query_starts=int32(np.cumsum([0, *lengths])),
        context_lens=int32([stop for _, _, stop in parts]),
        block_tables=int32([s.blocks + [0] * (width - len(s.blocks)) for s, _, _ in parts]),
        logit_rows=rows,
        hidden_rows=rows if hidden else int32([]),
    )
