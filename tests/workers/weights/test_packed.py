"""GPTQ and AWQ files, packed here bit by bit, give exactly the values that their formulas say."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stafette.workers.config import EngineConfig
from stafette.workers.errors import CheckpointError, ConfigError
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.weights.checkpoint import GroupedWeight
from stafette.workers.weights.opening import open_checkpoint

SIZES = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, head_dim=16)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
LAYER_MATRICES = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]


@dataclass
class Quantized:
    """A matrix [columns, rows] as both formats think of it: one code an element."""

    codes: np.ndarray  # [columns, rows]
    zeros: np.ndarray  # [groups, rows]
    scales: np.ndarray  # float16 [groups, rows]
    group_of: np.ndarray  # [columns]

    def values(self) -> np.ndarray:
        """Return the matrix, [rows, columns], exactly."""
        scale = self.scales.astype(np.float64)[self.group_of]
        zero = self.zeros.astype(np.float64)[self.group_of]
        return (scale * (self.codes - zero)).T


def random_matrix(seed: int, rows: int, columns: int, size: int, bits=4, symmetric=False):
    random = np.random.default_rng(seed)
    groups = -(-columns // size)
    top = 1 << bits
    zeros = random.integers(1, top, (groups, rows))
    if symmetric:
        zeros[:] = top // 2
    return Quantized(
        codes=random.integers(0, top, (columns, rows)),
        zeros=zeros,
        scales=random.uniform(0.002, 0.02, (groups, rows)).astype(np.float16),
        group_of=np.arange(columns) // size,
    )


def pack(values: np.ndarray, bits: int, order=None) -> torch.Tensor:
    """Pack the last axis into int32: value order[i] of each 32 / bits goes to bits i * bits."""
    each = 32 // bits
    order = order or list(range(each))
    ints = np.zeros((*values.shape[:-1], values.shape[-1] // each), np.uint32)
    for index in np.ndindex(ints.shape):
        *outer, last = index
        for place in range(each):
            value = int(values[(*outer, last * each + order[place])])
            ints[index] |= np.uint32(value << (place * bits))
    return torch.from_numpy(ints.view(np.int32))


def gptq_pieces(matrix: Quantized, bits=4, version=1, act_order=False) -> dict:
    stored_zeros = matrix.zeros - 1 if version == 1 else matrix.zeros
    pieces = {
        "qweight": pack(matrix.codes.T, bits).T.contiguous(),
        "qzeros": pack(stored_zeros, bits),
        "scales": torch.from_numpy(matrix.scales),
    }
    if act_order is not None:
        pieces["g_idx"] = torch.from_numpy(matrix.group_of.astype(np.int32))
    return pieces


def awq_pieces(matrix: Quantized) -> dict:
    return {
        "qweight": pack(matrix.codes, 4, AWQ_ORDER),
        "qzeros": pack(matrix.zeros, 4, AWQ_ORDER),
        "scales": torch.from_numpy(matrix.scales),
    }


class Folder:
    """A saved toy Llama whose layers' matrices are replaced by packed ones."""

    def __init__(self, toys, path):
        self.model, self.path = toys.hf("llama", **SIZES), path
        self.model.save_pretrained(path)
        self.tensors = load_file(path / "model.safetensors")

    def quantize(self, config: dict, pieces, **matrix_options) -> dict[str, np.ndarray]:
        """Return the values that each matrix now stands for, and give them to the model."""
        expected = {}
        size = config.get("group_size", config.get("q_group_size"))
        for number, name in enumerate(self.matrices()):
            rows, columns = self.tensors.pop(f"{name}.weight").shape
            group = columns if size == -1 else size
            matrix = random_matrix(number, rows, columns, group, **matrix_options)
            for piece, tensor in pieces(matrix).items():
                self.tensors[f"{name}.{piece}"] = tensor
            expected[f"{name}.weight"] = matrix.values()
        state = {name: torch.from_numpy(values).float() for name, values in expected.items()}
        self.model.load_state_dict(state, strict=False)
        self.write(config)
        return expected

    def matrices(self) -> list[str]:
        return [f"model.layers.{n}.{name}" for n in (0, 1) for name in LAYER_MATRICES]

    def write(self, config: dict | None) -> None:
        path = self.path / "model.safetensors"
        path.unlink()
        save_file(self.tensors, path)
        stored = json.loads((self.path / "config.json").read_text())
        if config is not None:
            stored["quantization_config"] = config
        (self.path / "config.json").write_text(json.dumps(stored))


@pytest.fixture
def folder(toys, tmp_path) -> Folder:
    return Folder(toys, tmp_path)


def assert_exact(checkpoint, expected: dict[str, np.ndarray], bits: int | None) -> None:
    for name, values in expected.items():
        weight = checkpoint.load(name)
        assert checkpoint.shape(name) == values.shape
        if bits is None:
            assert isinstance(weight, torch.Tensor)
        else:
            assert isinstance(weight, GroupedWeight)
            assert weight.bits == bits
            weight = weight.dequantize()
        assert np.array_equal(weight.numpy(), values.astype(np.float32)), name


def same_logits(folder: Folder, checkpoint) -> None:
    config = EngineConfig(dtype="float32", block_size=16, device="cpu", runner="torch")
    runner = TorchRunner(config, checkpoint)
    runner.allocate_kv(1)
    tokens = np.arange(3, 13, dtype=np.int32)
    inputs = StepInputs(
        token_ids=tokens,
        positions=np.arange(10, dtype=np.int32),
        query_starts=np.array([0, 10], np.int32),
        context_lens=np.array([10], np.int32),
        block_tables=np.zeros((1, 1), np.int32),
        logit_rows=np.arange(10, dtype=np.int32),
    )
    with torch.no_grad():
        expected = folder.model(torch.from_numpy(tokens)[None].long()).logits[0]

    torch.testing.assert_close(runner.forward(inputs).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq_values_are_exact(folder, group_size, symmetric, version):
    form = "gptq" if version == 1 else "gptq_v2"
    config = {"quant_method": "gptq", "bits": 4, "group_size": group_size}

    expected = folder.quantize(
        config | {"checkpoint_format": form},
        lambda matrix: gptq_pieces(matrix, version=version),
        symmetric=symmetric,
    )

    checkpoint = open_checkpoint(str(folder.path))
    assert checkpoint.quantization == "gptq"
    assert_exact(checkpoint, expected, bits=4)


def test_gptq_of_eight_bits_is_exact(folder):
    config = {"quant_method": "gptq", "bits": 8, "group_size": 32}

    expected = folder.quantize(config, lambda matrix: gptq_pieces(matrix, bits=8), bits=8)

    assert_exact(open_checkpoint(str(folder.path), "gptq"), expected, bits=8)


def test_gptq_with_shuffled_groups_is_made_dense(folder):
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
    random = np.random.default_rng(9)

    def shuffled(matrix: Quantized) -> dict:
        matrix.group_of = random.permutation(matrix.group_of)
        return gptq_pieces(matrix)

    expected = folder.quantize(config, shuffled)

    checkpoint = open_checkpoint(str(folder.path))
    for name, values in expected.items():
        np.testing.assert_allclose(checkpoint.load(name).numpy(), values, rtol=1e-6)
    same_logits(folder, checkpoint)


def test_gptq_without_group_numbers_counts_them_itself(folder):
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32}

    expected = folder.quantize(config, lambda matrix: gptq_pieces(matrix, act_order=None))

    assert_exact(open_checkpoint(str(folder.path)), expected, bits=4)


def test_groups_that_are_too_narrow_are_made_dense(folder):
    config = {"quant_method": "gptq", "bits": 4, "group_size": 16}

    expected = folder.quantize(config, gptq_pieces)

    assert_exact(open_checkpoint(str(folder.path)), expected, bits=None)


@pytest.mark.parametrize("group_size", [32, 64])
def test_awq_values_are_exact(folder, group_size):
    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm"}

    expected = folder.quantize(config, awq_pieces)

    checkpoint = open_checkpoint(str(folder.path))
    assert checkpoint.quantization == "awq"
    assert_exact(checkpoint, expected, bits=4)


@pytest.mark.parametrize(
    ("config", "pieces"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq_pieces),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, awq_pieces),
    ],
)
def test_logits_are_those_of_the_dequantized_model(folder, config, pieces):
    folder.quantize(config, pieces)

    same_logits(folder, open_checkpoint(str(folder.path)))


@pytest.mark.parametrize(
    ("file", "config", "pieces", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 32}, gptq_pieces, "gptq"),
        (
            "quant_config.json",
            {"w_bit": 4, "q_group_size": 32, "version": "GEMM"},
            awq_pieces,
            "awq",
        ),
    ],
)
def test_older_tools_leave_a_file_of_their_own(folder, file, config, pieces, method):
    expected = folder.quantize(config, pieces)
    stored = json.loads((folder.path / "config.json").read_text())
    stored.pop("quantization_config")
    (folder.path / "config.json").write_text(json.dumps(stored))
    (folder.path / file).write_text(json.dumps(config))

    checkpoint = open_checkpoint(str(folder.path))

    assert checkpoint.quantization == method
    assert_exact(checkpoint, expected, bits=4)


def test_flag_must_agree_with_the_files(folder):
    folder.quantize({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq_pieces)

    with pytest.raises(ConfigError, match="hold gptq: leave it at auto"):
        open_checkpoint(str(folder.path), "awq")


def test_flag_needs_quantized_files(folder):
    with pytest.raises(ConfigError, match="hold none: leave it at auto"):
        open_checkpoint(str(folder.path), "gptq")


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"bits": 3}, "bits", "supported are 4, 8"),
        ({"bits": None}, "bits", "supported are 4, 8"),
        ({"group_size": 0}, "group_size", "must be -1, or"),
        ({"group_size": "big"}, "group_size", "must be -1, or"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format", "supported are gptq, gptq_v2"),
        ({"quant_method": "fp8"}, "quant_method", "supported are gptq and awq"),
        ({"quant_method": "awq", "version": "gemv"}, "version", "supported are gemm, GEMM"),
    ],
)
def test_unsupported_settings_are_named(folder, change, field, remedy):
    folder.write({"quant_method": "gptq", "bits": 4, "group_size": 32} | change)

    with pytest.raises(CheckpointError, match=remedy) as caught:
        open_checkpoint(str(folder.path))

    assert caught.value.field == f"quantization_config {field}"


@pytest.mark.parametrize("piece", ["scales", "qzeros"])
def test_missing_piece_is_named(folder, piece):
    folder.quantize({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq_pieces)
    del folder.tensors[f"model.layers.1.mlp.up_proj.{piece}"]
    folder.write(None)

    with pytest.raises(CheckpointError, match="beside its qweight") as caught:
        open_checkpoint(str(folder.path))

    assert caught.value.value == f"model.layers.1.mlp.up_proj.{piece}"


@pytest.mark.parametrize(
    ("piece", "tensor", "remedy"),
    [
        ("scales", torch.ones(3, 128, dtype=torch.float16), r"must have the shape \(2, 128\)"),
        ("qzeros", torch.ones(2, 16, dtype=torch.int64), r"must be torch\.int32"),
        ("g_idx", torch.full((64,), 2, dtype=torch.int32), "from 0 to 1"),
    ],
)
def test_piece_that_does_not_fit_is_named(folder, piece, tensor, remedy):
    folder.quantize({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq_pieces)
    folder.tensors[f"model.layers.0.mlp.up_proj.{piece}"] = tensor
    folder.write(None)
    checkpoint = open_checkpoint(str(folder.path))

    with pytest.raises(CheckpointError, match=remedy):
        checkpoint.load("model.layers.0.mlp.up_proj.weight")


def test_packed_matrix_of_a_wrong_shape_is_named(folder):
    folder.quantize({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq_pieces)
    folder.tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(8, 120, dtype=torch.int32)
    folder.write(None)

    with pytest.raises(CheckpointError, match=r"must be \(128, 64\), not \(120, 64\)"):
        open_checkpoint(str(folder.path))
