"""Every block format gives what the gguf package's own dequantize gives, bit for bit."""

import gguf
import numpy as np
import pytest
import torch

from stafette.workers.weights.checkpoint import GroupedWeight
from stafette.workers.weights.gguf_blocks import decode
from stafette.workers.weights.gguf_formats import FORMATS

NUMBERS = {form.name: number for number, form in FORMATS.items()}
SCALE_BYTES = {  # where a block's 16-bit scales are; any other byte may have any value
    "Q4_0": (0, 2),
    "Q4_1": (0, 4),
    "Q5_0": (0, 2),
    "Q5_1": (0, 4),
    "Q8_0": (0, 2),
    "Q4_K": (0, 4),
    "Q5_K": (0, 4),
    "Q2_K": (80, 84),
    "Q3_K": (108, 110),
    "Q6_K": (208, 210),
    "IQ4_NL": (0, 2),
    "IQ4_XS": (0, 2),
}
FOUR_BITS, EIGHT_BITS = ("Q4_0", "Q4_1", "Q4_K"), ("Q5_0", "Q5_1", "Q5_K", "Q8_0")


def random_rows(name: str, rows: int = 6, blocks: int = 3) -> np.ndarray:
    form = FORMATS[NUMBERS[name]]
    random = np.random.default_rng(NUMBERS[name])
    data = random.integers(0, 256, (rows, blocks, form.num_bytes), np.uint8)
    start, stop = SCALE_BYTES[name]
    scales = random.normal(0, 0.1, (rows, blocks, (stop - start) // 2)).astype(np.float16)
    data[:, :, start:stop] = scales.view(np.uint8)
    return data.reshape(rows, -1)


def reference(name: str, rows: np.ndarray) -> np.ndarray:
    return gguf.dequantize(rows, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", SCALE_BYTES)
def test_values_are_those_of_the_reference(name):
    rows = random_rows(name)

    weight = decode(NUMBERS[name], rows)

    dense = weight.dequantize() if isinstance(weight, GroupedWeight) else weight
    assert np.array_equal(dense.numpy(), reference(name, rows))


@pytest.mark.parametrize("name", FOUR_BITS)
def test_four_bit_formats_stay_at_four_bits(name):
    weight = decode(NUMBERS[name], random_rows(name))

    assert isinstance(weight, GroupedWeight)
    assert weight.bits == 4
    assert weight.codes.nbytes * 2 == np.prod(weight.shape)


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_formats_of_five_to_eight_bits_keep_a_byte_a_code(name):
    weight = decode(NUMBERS[name], random_rows(name))

    assert isinstance(weight, GroupedWeight)
    assert weight.bits == 8
    assert weight.codes.dtype == np.int8


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_real_weights_survive_as_well_as_the_format_allows(name):
    values = np.random.default_rng(1).normal(0, 0.05, (8, 96)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]

    weight = decode(NUMBERS[name], gguf.quantize(values, kind))

    assert np.array_equal(weight.dequantize().numpy(), reference(name, gguf.quantize(values, kind)))
    assert np.abs(weight.dequantize().numpy() - values).max() < 0.03


def test_neighbouring_columns_share_a_byte():
    codes = np.arange(32) % 16
    block = np.zeros(18, np.uint8)
    block[:2] = np.array([1.0], np.float16).view(np.uint8)
    block[2:] = codes[:16] | codes[16:] << 4

    weight = decode(NUMBERS["Q4_0"], block[None])

    assert weight.codes.tolist() == [[16 * odd + even for even, odd in codes.reshape(16, 2)]]
    assert weight.dequantize()[0].tolist() == [float(code - 8) for code in codes]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)],
)
def test_floats_are_taken_without_a_copy(name, dtype):
    values = torch.randn(4, 8).to(dtype)
    rows = values.view(torch.uint8).numpy()

    tensor = decode(NUMBERS[name], rows)

    assert torch.equal(tensor, values)
    assert tensor.data_ptr() == rows.ctypes.data


@pytest.mark.parametrize("number", FORMATS)
def test_sizes_are_those_of_ggml(number):
    form = FORMATS[number]

    kind = gguf.GGMLQuantizationType(number)

    assert kind.name == form.name
    assert gguf.GGML_QUANT_SIZES[kind] == (form.elements, form.num_bytes)
