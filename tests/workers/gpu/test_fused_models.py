"""Whole models on our kernels against plain torch; compiled on a GPU, else interpreted."""

import os

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from stafette.workers.config import EngineConfig
from stafette.workers.gpu import launching
from stafette.workers.models.spec import ModelSpec, RopeSpec
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.weights.checkpoint import Checkpoint, GroupedWeight

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []
HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCAB = 64, 96, 4, 2, 16, 50


class RandomCheckpoint(Checkpoint):
    """Weights drawn from their name; those of layers may be packed in 4 bits."""

    def __init__(self, spec, bits):
        self.spec, self.bits = spec, bits
        self.quantization = "gguf" if bits else "none"

    def names(self):
        rows = {"q": HEADS * DIM, "k": KV_HEADS * DIM, "v": KV_HEADS * DIM}
        yield from ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
        for layer in range(self.spec.num_layers):
            inner = f"model.layers.{layer}."
            names = ["input_layernorm", "post_attention_layernorm", "self_attn.o_proj"]
            names += [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
            names += [f"self_attn.{n}_proj" for n in rows]
            if self.spec.qk_norm:
                names += ["self_attn.q_norm", "self_attn.k_norm"]
            yield from (f"{inner}{name}.weight" for name in names)
            if self.spec.attention_bias:
                yield from (f"{inner}self_attn.{n}_proj.bias" for n in rows)

    def load(self, name):
        random = np.random.default_rng(list(name.encode()))
        shape = self._shape(name)
        if len(shape) == 1:
            return torch.from_numpy(random.normal(1, 0.2, shape).astype(np.float32))
        if self.bits and "layers" in name:
            codes = random.integers(0, 256, (shape[0], shape[1] // 2), dtype=np.uint8)
            scale = random.uniform(0.005, 0.02, (shape[0], shape[1] // 32)).astype(np.float32)
            return GroupedWeight(4, codes, scale, -7.5 * scale)
        return torch.from_numpy(random.normal(0, 0.15, shape).astype(np.float32))

    def _shape(self, name):
        kind = name.split(".")[-2]
        if "norm" in kind:
            return (DIM,) if kind in ("q_norm", "k_norm") else (HIDDEN,)
        rows, columns = {
            "q_proj": (HEADS * DIM, HIDDEN),
            "k_proj": (KV_HEADS * DIM, HIDDEN),
            "v_proj": (KV_HEADS * DIM, HIDDEN),
            "o_proj": (HIDDEN, HEADS * DIM),
            "gate_proj": (INNER, HIDDEN),
            "up_proj": (INNER, HIDDEN),
            "down_proj": (HIDDEN, INNER),
        }.get(kind, (VOCAB, HIDDEN))
        return (rows,) if name.endswith("bias") else (rows, columns)


def make_spec(architecture):
    return ModelSpec(
        architecture=architecture,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_layers=2,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        rms_norm_eps=1e-6,
        rope=RopeSpec(),
        max_position_embeddings=128,
        tie_word_embeddings=False,
        attention_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        dtype="float32",
    )


def steps():
    """A prompt and a half, the rest beside a decoded token, two decoded tokens, one alone."""
    yield step([(0, 9), (1, 12)], [9, 5])
    yield step([(0, 10), (1, 12)], [1, 7])
    yield step([(0, 11), (1, 13)], [1, 1])
    yield step([(1, 14)], [1])
    yield step([(0, 12)], [1])


def step(contexts, news):
    positions = [np.arange(c - n, c) for (_, c), n in zip(contexts, news, strict=True)]
    tokens = np.concatenate(positions) * 7 % VOCAB
    starts = np.cumsum([0, *news])
    return StepInputs(
        token_ids=tokens.astype(np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        query_starts=starts.astype(np.int32),
        context_lens=np.array([c for _, c in contexts], np.int32),
        block_tables=np.array([[2 * seq, 2 * seq + 1] for seq, _ in contexts], np.int32),
        logit_rows=np.arange(starts[-1], dtype=np.int32),
    )


def run(checkpoint, backend, **flags):
    flags |= dict(dtype="float32", max_model_len=32, attention_backend=backend, runner="torch")
    runner = TorchRunner(EngineConfig(**flags), checkpoint)
    runner.allocate_kv(8)
    runner.warm_up()
    return [runner.forward(inputs).logits.double().cpu().clone() for inputs in steps()]


@pytest.fixture
def plain(monkeypatch):
    """Turns our kernels off when called."""
    return lambda: monkeypatch.setattr(launching, "installed", lambda: False)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("bits", [None, 4])
def test_logits_are_those_of_plain_torch(architecture, bits, plain):
    checkpoint = RandomCheckpoint(make_spec(architecture), bits)

    ours = run(checkpoint, "triton")
    plain()
    expected = run(checkpoint, "reference", enforce_eager=True)

    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4)
