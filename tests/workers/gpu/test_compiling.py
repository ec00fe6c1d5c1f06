"""Compiles the kernels for an H200 and for Blackwell, without one: Triton brings its assembler.

What a launch would pass is taken from the real call. Nothing runs, so nothing is said about results
(test_interpreted) or speed (benchmarks/engine/gpu_decode.py): only about the machine code.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
import torch

if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton's compiler", allow_module_level=True)

from stafette.workers.attention import triton_attention
from stafette.workers.attention.backend import AttentionMetadata, AttentionShape
from stafette.workers.attention.triton_attention import TritonAttention
from stafette.workers.models import fused, quantized
from stafette.workers.models.fused import Around, HeadNorms
from stafette.workers.models.quantized import PackedLinear
from stafette.workers.weights.checkpoint import GroupedWeight

HOPPER, BLACKWELL = 90, 100
SHARED_BYTES = 227 * 1024  # that a program may have on either
EARLY = {"EARLY": True, "launch_pdl": True}
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
POINTERS = {
    torch.float32: "*fp32",
    BF16: "*bf16",
    torch.float16: "*fp16",
    FP8: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
}


@dataclass
class Compiled:
    ptx: str
    stack_bytes: int
    shared_bytes: int

    def count(self, instruction):
        return len(re.findall(instruction, self.ptx))


class Kernels:
    """Stands in for a module of kernels: compiles what is launched."""

    def __init__(self, module, capability=HOPPER):
        self.module, self.capability, self.compiled = module, capability, {}

    def __getattr__(self, name):
        return Launcher(self, name)


class Launcher:
    def __init__(self, kernels, name):
        self.kernels, self.name = kernels, name

    def __getitem__(self, grid):
        def launch(*arguments, **named):
            function = getattr(self.kernels.module, self.name)
            made = compile_for(self.kernels.capability, function, arguments, named)
            self.kernels.compiled[self.name] = made

        return launch


def compile_for(capability, function, arguments, named):
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature, constants, aligned = dict.fromkeys(names, "constexpr"), {}, {}
    for index, value in enumerate(arguments):
        signature[names[index]] = kind = kind_of(value)
        if kind == "constexpr":
            constants[(index,)] = value
        if kind.startswith("*") or (kind == "i32" and value % 16 == 0):
            aligned[(index,)] = [["tt.divisibility", 16]]
    constants |= {(names.index(n),): value for n, value in named.items() if n in names}
    source = ASTSource(function, signature, constants, aligned)
    options = {n: value for n, value in named.items() if n not in names}
    made = triton_compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    stack = stack_bytes(made.asm["cubin"])
    return Compiled(made.asm["ptx"], stack, made.metadata.shared)


def kind_of(value):
    """Specialise as a launch does: a number that is 1 becomes part of the code."""
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "constexpr" if value == 1 else "i32"


def stack_bytes(cubin):
    """Return what a thread keeps in memory for lack of registers."""
    from triton import knobs

    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, check=True).stdout
    return int(re.search(rb"STACK:(\d+)", usage)[1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Keeps what was compiled on other days out of the way."""
    return str(tmp_path_factory.mktemp("triton"))


@pytest.fixture(autouse=True)
def as_on_hopper(cache, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", cache)
    for module in (triton_attention, fused, quantized):
        monkeypatch.setattr(module, "early", lambda device: EARLY)


def attention(head_dim, kv_dtype, block_size=16, capability=HOPPER):
    """Compile a step of a Qwen3-like layer: prompts and decode, several splits."""
    backend = TritonAttention(AttentionShape(16, 8, head_dim, block_size, 0.1))
    backend._kernels = Kernels(backend._kernels, capability)
    layer = torch.zeros(4, 2, 2, 8, block_size, head_dim, dtype=kv_dtype)[:, 1]
    q, k = torch.zeros(40, 16, head_dim, dtype=BF16), torch.zeros(40, 8, head_dim, dtype=BF16)
    counts = torch.zeros(4, dtype=torch.int32)
    tables, slots = torch.zeros(3, 32, dtype=torch.int32), torch.zeros(40, dtype=torch.int64)
    meta = AttentionMetadata(counts, counts[:3], tables, slots, 30, 1000)
    backend.write(k, k, layer, meta)
    backend.attend(q, layer, meta)
    return backend._kernels.compiled


@pytest.fixture
def early_kernels(monkeypatch):
    """Compiles what fused and quantized launch."""
    kernels = {}
    for module in (fused, quantized):
        kernels[module] = Kernels(module._kernels())
        monkeypatch.setattr(module, "_kernels", lambda made=kernels[module]: made)
    return kernels


def zeros(*shape):
    return torch.zeros(*shape, dtype=BF16)


@pytest.mark.parametrize("kv_dtype", [BF16, FP8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_fits_an_h200(head_dim, kv_dtype):
    compiled = attention(head_dim, kv_dtype)

    assert set(compiled) == {"store_kv", "decode", "merge_splits", "prefill"}
    # Triton 3.7 keeps one 16-byte value there, 3.9 none; a kernel short of registers keeps more.
    assert max(made.stack_bytes for made in compiled.values()) <= 16
    assert max(made.shared_bytes for made in compiled.values()) <= SHARED_BYTES
    # Three decoding programs must fit on an SM together: see decode_tiles.
    assert 3 * compiled["decode"].shared_bytes <= SHARED_BYTES


def test_attention_reads_16_bytes_at_a_time_into_tensor_cores():
    compiled = attention(128, BF16)

    for name in ("decode", "prefill"):
        assert compiled[name].count(r"cp\.async\.cg\.shared\.global [^;]*, 0x10") > 0
    assert compiled["decode"].count(r"mma\.sync") > 0
    assert compiled["prefill"].count(r"wgmma\.mma_async") > 0
    assert compiled["store_kv"].count(r"st\.global\.v4") > 0


def test_attention_compiles_for_blackwell():
    compiled = attention(128, BF16, capability=BLACKWELL)

    assert compiled["prefill"].count(r"tcgen05\.mma") > 0


@pytest.mark.parametrize("gated", [False, True])
def test_one_token_product_reads_only_weights_before_it_waits(early_kernels, gated):
    fused.gemv(zeros(1, 1024), zeros(4096, 1024), None, Around(zeros(1024), 1e-6, None, gated))

    made = early_kernels[fused].compiled["gemv"]
    before, after = made.ptx.split("griddepcontrol.wait")
    # 128 threads share a tile of 8,192 weights: eight loads of eight each; then x and the norm.
    assert len(re.findall(r"ld\.global\.v4", before)) == 8
    assert len(re.findall(r"ld\.global", before)) == 8
    assert len(re.findall(r"st\.global", before)) == 0
    assert len(re.findall(r"ld\.global", after)) > 0
    assert made.stack_bytes == 0


def test_other_early_kernels_touch_nothing_before_they_wait(early_kernels):
    norms = HeadNorms(zeros(128), zeros(128), 1e-6)
    angles = zeros(3, 1, 128)
    fused.norm_rope(zeros(3, 24, 128), 16, norms, angles, angles)

    early = [early_kernels[fused].compiled["norm_rope"]]
    early += [made for name, made in attention(128, BF16).items() if name != "prefill"]
    for made in early:
        before, _ = made.ptx.split("griddepcontrol.wait")
        assert not re.findall(r"(ld|st)\.global", before)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_products_fit_an_h200(early_kernels, bits):
    codes = np.zeros((4096, 128 * bits), np.uint8 if bits == 4 else np.int8)
    scale = np.zeros((4096, 32), np.float32)
    linear = PackedLinear(GroupedWeight(bits, codes, scale, scale), None, torch.device("cpu"))

    linear.one_token(zeros(1, 1024), Around(zeros(1024), 1e-6))
    linear(zeros(64, 1024))

    compiled = early_kernels[quantized].compiled
    assert {made.stack_bytes for made in compiled.values()} == {0}
    assert compiled["gemm_grouped"].count(r"wgmma\.mma_async|mma\.sync") > 0
    before, _ = compiled["gemv_grouped"].ptx.split("griddepcontrol.wait")
    assert len(re.findall(r"st\.global", before)) == 0
