"""Every architecture against Hugging Face, in every way that a batch can be put together."""

import numpy as np
import pytest
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner

BLOCK = 4
LENGTHS = (13, 30, 7)
SCHEDULES = {  # each step: how many tokens of which sequence
    "prefill": [{0: 13}, {1: 30}, {2: 7}],
    "chunked_prefill": [{1: 11}, {1: 11}, {1: 8}, {0: 5}, {0: 8}, {2: 7}],
    "decode": [{0: 5, 1: 22, 2: 1}, *[{0: 1, 1: 1, 2: 1}] * 6, *[{0: 1, 1: 1}] * 2],
    "mixed": [{0: 9}, {0: 1, 1: 16}, {0: 1, 1: 10, 2: 3}, {0: 1, 1: 3, 2: 2}, {0: 1, 2: 2, 1: 1}],
}
ROPES = {
    "linear": dict(rope_type="linear", factor=4.0),
    "llama3": dict(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
}
MOE = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24)
MODELS = {
    "llama": ("llama", {}),
    "llama with tied embeddings": ("llama", dict(tie_word_embeddings=True)),
    "llama with a head dimension of 10": ("llama", dict(head_dim=10)),
    "llama with one KV head": ("llama", dict(num_key_value_heads=1)),
    "llama without grouped heads": ("llama", dict(num_key_value_heads=6)),
    "llama with biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "mistral": ("mistral", dict(sliding_window=None)),
    "mistral with a window": ("mistral", dict(sliding_window=6)),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", dict(head_dim=16)),
    "qwen3_moe": ("qwen3_moe", MOE | dict(norm_topk_prob=True)),
    "qwen3_moe without normed shares": ("qwen3_moe", MOE | dict(norm_topk_prob=False)),
    "qwen3_moe with a dense layer": ("qwen3_moe", MOE | dict(mlp_only_layers=[1])),
    "qwen3_moe that is sparse every other layer": ("qwen3_moe", MOE | dict(decoder_sparse_step=2)),
    **{
        f"llama with {name} rope": ("llama", dict(rope_parameters=rope | {"rope_theta": 1e4}))
        for name, rope in ROPES.items()
    },
}


class Case:
    """A model, its runner, and what Hugging Face says of three random sequences."""

    def __init__(self, toys, architecture, overrides):
        hf = toys.hf(architecture, **overrides)
        config = EngineConfig(dtype="float32", block_size=BLOCK, device="cpu", runner="torch")
        self.runner = TorchRunner(config, toys.checkpoint(hf))
        self.runner.allocate_kv(32)
        random = np.random.default_rng(0)
        self.sequences = [random.integers(0, 97, n).astype(np.int32) for n in LENGTHS]
        with torch.no_grad():
            self.expected = [hf(torch.from_numpy(s)[None].long()).logits[0] for s in self.sequences]
        # Blocks of different sequences lie among each other, in no order.
        self.tables = random.permutation(32)[: 3 * 8].reshape(3, 8).astype(np.int32)

    def run(self, schedule):
        """Return each sequence's logits, one row a token."""
        done = [0, 0, 0]
        logits = [[], [], []]
        for step in schedule:
            out = self.runner.forward(self._inputs(step, done)).logits
            for sequence, rows in zip(step, out.split(list(step.values())), strict=True):
                logits[sequence].append(rows.clone())
                done[sequence] += len(rows)
        return [torch.cat(rows) for rows in logits]

    def _inputs(self, step, done):
        spans = [np.arange(done[s], done[s] + count, dtype=np.int32) for s, count in step.items()]
        tokens = [self.sequences[s][span] for s, span in zip(step, spans, strict=True)]
        starts = np.cumsum([0, *step.values()], dtype=np.int32)
        return StepInputs(
            token_ids=np.concatenate(tokens),
            positions=np.concatenate(spans),
            query_starts=starts,
            context_lens=np.array([span[-1] + 1 for span in spans], np.int32),
            block_tables=self.tables[list(step)],
            logit_rows=np.arange(starts[-1], dtype=np.int32),
        )


@pytest.fixture(scope="module")
def cases(toys):
    made = {}

    def case(name):
        if name not in made:
            made[name] = Case(toys, *MODELS[name])
        return made[name]

    return case


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", MODELS)
def test_logits_are_those_of_hugging_face(cases, model, schedule):
    case = cases(model)

    logits = case.run(SCHEDULES[schedule])

    for ours, expected in zip(logits, case.expected, strict=True):
        torch.testing.assert_close(ours, expected[: len(ours)], atol=1e-4, rtol=0)
