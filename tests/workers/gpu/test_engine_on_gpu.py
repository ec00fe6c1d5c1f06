"""The embedded model on a real GPU: packed weights, our kernels, graphs."""

import pytest
import torch

from stafette.workers import LLM, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
PROMPTS = ["The capital of France is", "A relay race is", "def add(a, b):", "Once upon a time"]


def answers(**flags):
    flags |= dict(dtype="float32", max_model_len=512, num_kv_blocks=256, max_num_seqs=8)
    with LLM(**flags) as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=32))
    return [output.outputs[0].token_ids for output in outputs]


def test_graphs_and_kernels_give_the_cpus_greedy_answers():
    expected = answers(device="cpu", runner="torch")

    assert answers(device="cuda", enforce_eager=True) == expected
    assert answers(device="cuda") == expected


def test_dense_weights_give_the_same_answers_as_packed_ones():
    assert answers(device="cuda", quantization="none") == answers(device="cuda")
