"""A GGUF file as a Checkpoint: Hugging Face's names, and its order of the q and k rows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.checkpoint import Checkpoint, Weight
from stafette.workers.weights.gguf import GgufFile, GgufTensor
from stafette.workers.weights.gguf_blocks import DENSE, Bytes, decode
from stafette.workers.weights.gguf_formats import FORMATS
from stafette.workers.weights.gguf_spec import read_spec

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_EXPERTS = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a Hugging Face tensor comes from: a tensor of the file, or one expert's share."""

    tensor: GgufTensor
    expert: int | None = None


class GgufCheckpoint(Checkpoint):
    """One GGUF file. Matrices stay quantized; unknown tensors are left alone."""

    def __init__(self, path: str | Path) -> None:
        self.file = GgufFile(path)
        self.spec = read_spec(self.file)
        self.quantization = "gguf"
        self._sources = dict(_sources(self.file))

    def names(self) -> Iterator[str]:
        return iter(self._sources)

    def load(self, name: str) -> Weight:
        source = self._sources.get(name)
        if source is None:
            remedy = f"is missing from {self.file.path}; download it again"
            raise CheckpointError("tensor", name, remedy)
        rows = self._rows(source)
        if heads := self._interleaved_heads(name):
            rows = _in_halves(rows, heads)
        weight = decode(source.tensor.kind, rows)
        return weight.reshape(-1) if _is_vector(weight, source.tensor) else weight

    def shape(self, name: str) -> tuple[int, ...]:
        source = self._sources[name]
        shape = source.tensor.shape
        return shape if source.expert is None else shape[1:]

    def _interleaved_heads(self, name: str) -> int:
        """Return how many heads' rows stand interleaved, as Llama's q and k do in GGUF."""
        if self.spec.architecture != "llama":
            return 0
        if ".q_proj." in name:
            return self.spec.num_heads
        return self.spec.num_kv_heads if ".k_proj." in name else 0

    def _rows(self, source: _Source) -> Bytes:
        """Return the bytes of each row; a vector has one element a row."""
        tensor, rows = source.tensor, self.file.rows(source.tensor)
        if source.expert is not None:
            each = len(rows) // tensor.shape[0]
            return rows[source.expert * each : (source.expert + 1) * each]
        if len(tensor.shape) > 1:
            return rows
        if FORMATS[tensor.kind].name not in DENSE:
            remedy = f"is a vector, which must be one of {', '.join(DENSE)}"
            raise CheckpointError(tensor.name, FORMATS[tensor.kind].name, remedy)
        return rows.reshape(tensor.shape[0], -1)


def _is_vector(weight: Weight, tensor: GgufTensor) -> TypeGuard[torch.Tensor]:
    return isinstance(weight, torch.Tensor) and len(tensor.shape) == 1


def _in_halves(rows: Bytes, heads: int) -> Bytes:
    """Undo the interleaving: row 2i of a head belongs at i, row 2i + 1 at half + i."""
    if len(rows) % (2 * heads):
        remedy = f"must be a multiple of twice the {heads} heads"
        raise CheckpointError("rows of q_proj and k_proj", len(rows), remedy)
    order = np.arange(len(rows)).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    in_halves: Bytes = rows[order]
    return in_halves


def _sources(file: GgufFile) -> Iterator[tuple[str, _Source]]:
    for tensor in file.tensors.values():
        base, _, kind = tensor.name.rpartition(".")
        if base in _TOP:
            yield f"{_TOP[base]}.{kind}", _Source(tensor)
        elif match := _BLOCK.fullmatch(tensor.name):
            yield from _layer_sources(tensor, match)


def _layer_sources(tensor: GgufTensor, match: re.Match[str]) -> Iterator[tuple[str, _Source]]:
    layer, part, kind = match.groups()
    prefix = f"model.layers.{layer}"
    if part in _LAYER:
        yield f"{prefix}.{_LAYER[part]}.{kind}", _Source(tensor)
    elif part in _EXPERTS and len(tensor.shape) == 3:
        for expert in range(tensor.shape[0]):
            name = f"{prefix}.mlp.experts.{expert}.{_EXPERTS[part]}.{kind}"
            yield name, _Source(tensor, expert)
