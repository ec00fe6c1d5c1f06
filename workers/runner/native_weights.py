"""Packs a checkpoint for the native library: fused matrices, norms, rope tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from stafette.workers.errors import CheckpointError
from stafette.workers.models.rope import Rope
from stafette.workers.models.spec import ModelSpec
from stafette.workers.native.library import Matrix, Team
from stafette.workers.native.structs import (
    GROUP_ROWS,
    Kind,
    LayerDesc,
    ModelDesc,
    PartDesc,
    Source,
)
from stafette.workers.weights.checkpoint import Checkpoint, GroupedWeight, Weight

Floats = npt.NDArray[np.float32]

_DENSE_SOURCES = {
    torch.bfloat16: Source.BFLOAT16,
    torch.float16: Source.FLOAT16,
    torch.float32: Source.FLOAT32,
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor's place in a fused matrix: `block` rows at every `stride` rows from `first`."""

    name: str
    rows: int
    first: int = 0
    block: int | None = None  # None: its rows stay together
    stride: int = 0


@dataclass(slots=True)
class NativeWeights:
    """Everything that a Decoder points to; keep it as long as the decoder."""

    desc: ModelDesc
    layers: list[LayerDesc]
    matrices: list[Matrix] = field(default_factory=list)
    arrays: list[Floats] = field(default_factory=list)

    def close(self) -> None:
        for matrix in self.matrices:
            matrix.close()


class WeightPacker:
    """Reads tensors by name, checks their shapes, and packs them with the team's threads."""

    def __init__(self, checkpoint: Checkpoint, team: Team) -> None:
        self.spec = checkpoint.spec
        self._checkpoint, self._team = checkpoint, team
        self._names = frozenset(checkpoint.names())
        self._weights = NativeWeights(ModelDesc(), [])

    def pack(self, num_positions: int) -> NativeWeights:
        spec, desc = self.spec, self._weights.desc
        self._describe(desc, num_positions)
        for index in range(spec.num_layers):
            self._weights.layers.append(self._layer(f"model.layers.{index}."))
        desc.final_norm = self._vector("model.norm.weight", spec.hidden_size)
        table = _Piece("model.embed_tokens", spec.vocab_size)
        desc.embedding = desc.head = self._matrix([table], spec.vocab_size, spec.hidden_size)
        if not spec.tie_word_embeddings:
            head = _Piece("lm_head", spec.vocab_size)
            desc.head = self._matrix([head], spec.vocab_size, spec.hidden_size)
        return self._weights

    def _describe(self, desc: ModelDesc, num_positions: int) -> None:
        spec = self.spec
        desc.vocab_size, desc.hidden_size = spec.vocab_size, spec.hidden_size
        desc.intermediate_size, desc.num_layers = spec.intermediate_size, spec.num_layers
        desc.num_heads, desc.num_kv_heads = spec.num_heads, spec.num_kv_heads
        desc.head_dim, desc.norm_eps = spec.head_dim, spec.rms_norm_eps
        desc.sliding_window = window_of(spec) or 0
        desc.num_positions = num_positions
        cos, sin = _rope_tables(spec, num_positions)
        desc.cos, desc.sin = self._keep(cos), self._keep(sin)

    def _layer(self, prefix: str) -> LayerDesc:
        spec, layer = self.spec, LayerDesc()
        q, kv, hidden = spec.q_size, spec.kv_size, spec.hidden_size
        attention = prefix + "self_attn."
        qkv = [
            _Piece(attention + "q_proj", q),
            _Piece(attention + "k_proj", kv, first=q),
            _Piece(attention + "v_proj", kv, first=q + kv),
        ]
        layer.qkv = self._matrix(qkv, q + 2 * kv, hidden)
        layer.qkv_bias = self._biases(qkv)
        layer.output = self._matrix([_Piece(attention + "o_proj", hidden)], hidden, q)
        layer.gate_up = self._gate_up(prefix + "mlp.")
        down = _Piece(prefix + "mlp.down_proj", hidden)
        layer.down = self._matrix([down], hidden, spec.intermediate_size)
        layer.input_norm = self._vector(prefix + "input_layernorm.weight", hidden)
        layer.mlp_norm = self._vector(prefix + "post_attention_layernorm.weight", hidden)
        if spec.qk_norm:
            layer.q_norm = self._vector(attention + "q_norm.weight", spec.head_dim)
            layer.k_norm = self._vector(attention + "k_norm.weight", spec.head_dim)
        return layer

    def _gate_up(self, prefix: str) -> int:
        """Interleave gate and up, so that both halves of a SwiGLU come out of one tile group."""
        rows = self.spec.intermediate_size
        pieces = [
            _Piece(prefix + name, rows, first, GROUP_ROWS, 2 * GROUP_ROWS)
            for name, first in (("gate_proj", 0), ("up_proj", GROUP_ROWS))
        ]
        padded = -(-rows // GROUP_ROWS) * GROUP_ROWS
        return self._matrix(pieces, 2 * padded, self.spec.hidden_size)

    def _matrix(self, pieces: Sequence[_Piece], rows: int, columns: int) -> int:
        weights = [self._load(piece, columns) for piece in pieces]
        kind = _kind_of(weights, self._checkpoint.quantization)
        keep: list[object] = []
        parts = [_part(*pair, keep) for pair in zip(weights, pieces, strict=True)]
        matrix = Matrix(self._team, kind, (rows, columns), parts)
        self._weights.matrices.append(matrix)
        assert matrix.pointer.value is not None
        return matrix.pointer.value

    def _load(self, piece: _Piece, columns: int) -> Weight:
        name = piece.name + ".weight"
        weight = self._checkpoint.load(name)
        _check_shape(name, tuple(weight.shape), (piece.rows, columns))
        return weight

    def _biases(self, pieces: Sequence[_Piece]) -> int | None:
        names = [piece.name + ".bias" for piece in pieces]
        if not any(name in self._names for name in names):
            if self.spec.attention_bias:
                raise CheckpointError(names[0], "missing", "the model's configuration asks for it")
            return None
        joined = [
            self._dense(name, piece.rows)
            if name in self._names
            else np.zeros(piece.rows, np.float32)
            for name, piece in zip(names, pieces, strict=True)
        ]
        return self._keep(np.concatenate(joined))

    def _vector(self, name: str, size: int) -> int:
        return self._keep(self._dense(name, size))

    def _dense(self, name: str, size: int) -> Floats:
        tensor = self._checkpoint.load_dense(name, torch.float32)
        _check_shape(name, tuple(tensor.shape), (size,))
        return np.ascontiguousarray(tensor.numpy())

    def _keep(self, array: Floats) -> int:
        self._weights.arrays.append(array)
        return int(array.ctypes.data)


def window_of(spec: ModelSpec) -> int | None:
    return spec.sliding_window if spec.architecture == "mistral" else None


def _rope_tables(spec: ModelSpec, num_positions: int) -> tuple[Floats, Floats]:
    """Return cos and sin, [positions, head_dim / 2], as the torch tier computes them."""
    rope = Rope(spec.rope, spec.head_dim, torch.device("cpu"))
    cos, sin = rope.angles(torch.arange(num_positions), torch.float32)
    half = spec.head_dim // 2
    cos, sin = cos[:, 0, half:].contiguous(), sin[:, 0, half:].contiguous()
    return cos.numpy(), sin.numpy()


def _kind_of(weights: Sequence[Weight], quantization: str) -> Kind:
    """Return the narrowest kind that holds all parts: 4-bit codes fit into 8 bits exactly."""
    grouped = [weight.bits for weight in weights if isinstance(weight, GroupedWeight)]
    if len(grouped) == len(weights):
        return Kind.INT4 if max(grouped) == 4 else Kind.INT8
    dense = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    # A quantized file's float32 matrices are K-quants that came through their own decoder.
    decoded = quantization == "gguf" and all(w.dtype == torch.float32 for w in dense)
    if decoded and all(w.shape[1] % GROUP_ROWS == 0 for w in dense):
        return Kind.INT8
    return Kind.BF16


def _part(weight: Weight, piece: _Piece, keep: list[object]) -> PartDesc:
    part = PartDesc(rows=piece.rows, first_row=piece.first)
    part.block = piece.block or piece.rows
    part.stride = piece.stride or piece.rows
    if isinstance(weight, torch.Tensor):
        if weight.dtype not in _DENSE_SOURCES:
            raise CheckpointError(piece.name, str(weight.dtype), "is not a weight's dtype")
        tensor = weight.contiguous()
        keep.append(tensor)
        part.source, part.data = _DENSE_SOURCES[weight.dtype], tensor.data_ptr()
        return part
    part.source = Source.INT4 if weight.bits == 4 else Source.INT8
    part.data = _address(weight.codes, keep)
    part.scale = _address(weight.scale, keep)
    part.offset = None if weight.offset is None else _address(weight.offset, keep)
    return part


def _address(array: np.ndarray, keep: list[object]) -> int:
    whole = np.ascontiguousarray(array)
    keep.append(whole)
    return int(whole.ctypes.data)


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise CheckpointError(name, shape, f"the model's configuration asks for {expected}")
