"""The C structures of abi.h, declared again for ctypes: same fields, same order."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from enum import IntEnum

ABI_VERSION = 1
GROUP_ROWS = 32  # gate rows that stand before as many up rows in a fused matrix

# kNumPhases names, in the order of the C enumeration
PHASES = ("embed", "norm", "qkv", "attend", "output", "gate_up", "down", "head")


class Kind(IntEnum):
    """How a packed matrix holds its weights."""

    INT4 = 0
    INT8 = 1
    BF16 = 2


class Source(IntEnum):
    """How a part of a matrix arrives."""

    INT4 = 0
    INT8 = 1
    BFLOAT16 = 2
    FLOAT16 = 3
    FLOAT32 = 4


class Element(IntEnum):
    """A number in memory."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2


def _fields(*groups: tuple[type, str]) -> Sequence[tuple[str, type]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class PartDesc(ctypes.Structure):
    _fields_ = _fields(
        (c_int32, "source"),
        (c_int64, "rows"),
        (c_void_p, "data scale offset"),
        (c_int64, "first_row block stride"),
    )


class ModelDesc(ctypes.Structure):
    _fields_ = _fields(
        (c_int32, "vocab_size hidden_size intermediate_size num_layers"),
        (c_int32, "num_heads num_kv_heads head_dim"),
        (c_int32, "block_size kv_element sliding_window"),
        (c_int32, "num_positions"),
        (c_float, "norm_eps"),
        (c_void_p, "cos sin embedding head final_norm"),
    )


class LayerDesc(ctypes.Structure):
    _fields_ = _fields(
        (c_void_p, "qkv output gate_up down"),
        (c_void_p, "input_norm mlp_norm qkv_bias q_norm k_norm"),
    )


class StepDesc(ctypes.Structure):
    _fields_ = _fields(
        (c_int32, "num_tokens num_seqs num_logits num_hidden table_width"),
        (c_void_p, "token_ids positions query_starts context_lens block_tables"),
        (c_void_p, "logit_rows hidden_rows"),
        (c_void_p, "kv_pool"),
        (c_int64, "num_blocks"),
        (c_void_p, "logits hidden"),
    )


class AttentionDesc(ctypes.Structure):
    _fields_ = _fields(
        (c_int32, "num_heads num_kv_heads head_dim block_size sliding_window"),
        (c_int32, "num_tokens num_seqs table_width kv_element row_element"),
        (c_float, "scale"),
        (c_void_p, "q k v"),
        (c_int64, "q_stride k_stride v_stride"),
        (c_void_p, "layer_kv"),
        (c_int64, "num_blocks block_stride value_stride head_stride"),
        (c_void_p, "query_starts context_lens block_tables slots out"),
    )


_Out = POINTER(c_void_p)
SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "stafette_abi_version": (c_int, []),
    "stafette_error": (c_char_p, []),
    "stafette_isa": (c_char_p, [c_char_p]),
    "stafette_engine_new": (c_int, [c_int, c_char_p, _Out]),
    "stafette_engine_free": (None, [c_void_p]),
    "stafette_engine_quiesce": (None, [c_void_p]),
    "stafette_matrix_new": (
        c_int,
        [c_void_p, c_int, c_int, c_int, POINTER(PartDesc), c_int, _Out],
    ),
    "stafette_matrix_free": (None, [c_void_p]),
    "stafette_matrix_bytes": (c_int64, [c_void_p]),
    "stafette_model_new": (c_int, [c_void_p, POINTER(ModelDesc), POINTER(LayerDesc), _Out]),
    "stafette_model_free": (None, [c_void_p]),
    "stafette_model_step": (c_int, [c_void_p, POINTER(StepDesc)]),
    "stafette_attention_new": (c_int, [c_void_p, POINTER(AttentionDesc), _Out]),
    "stafette_attention_free": (None, [c_void_p]),
    "stafette_attention_write": (c_int, [c_void_p, POINTER(AttentionDesc)]),
    "stafette_attention_run": (c_int, [c_void_p, POINTER(AttentionDesc)]),
    "stafette_model_times": (None, [c_void_p, POINTER(c_double)]),
}
