"""The embedded model in float32: its greedy text is that of Hugging Face."""

import numpy as np
import pytest
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.weights.opening import open_checkpoint, open_tokenizer

NUM_TOKENS = 64
BLOCKS_EACH = 6  # of 16 tokens: the longest prompt and its answer
PROMPTS = [
    "The capital of France is",
    "One, two, three,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "Once upon a time there was a fox who",
    "The three primary colours are",
    "To bake bread you need",
    "import numpy as np\n\n",
    "Dear Sir or Madam,\n",
    "The speed of light is",
    "In 1969, the first",
    "A relay race is",
    "SELECT name FROM",
    "Photosynthesis is the process",
    "Q: What is 12 + 30?\nA:",
    "The longest river in Africa",
    "Roses are red,",
    "My favourite book is",
    "<div class=",
    "The meeting starts at",
]


@pytest.fixture(scope="module")
def prompts():
    tokenizer = open_tokenizer("smollm2")
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def answers(prompts):
    """Greedy tokens, all prompts in one batch."""
    config = EngineConfig(dtype="float32", device="cpu", runner="torch")
    runner = TorchRunner(config, open_checkpoint("smollm2"))
    runner.allocate_kv(len(prompts) * BLOCKS_EACH)
    chosen = [runner.forward(prefill(prompts)).logits.argmax(-1).numpy()]
    for index in range(NUM_TOKENS - 1):
        places = np.array([len(prompt) + index for prompt in prompts], np.int32)
        chosen.append(runner.forward(decode(chosen[-1], places)).logits.argmax(-1).numpy())
    runner.close()
    return np.stack(chosen, axis=1)


def tables(num_seqs):
    return np.arange(num_seqs * BLOCKS_EACH, dtype=np.int32).reshape(num_seqs, BLOCKS_EACH)


def prefill(prompts):
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    starts = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
    return StepInputs(
        token_ids=np.concatenate(prompts).astype(np.int32),
        positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        query_starts=starts,
        context_lens=lengths,
        block_tables=tables(len(prompts)),
        logit_rows=starts[1:] - 1,
    )


def decode(tokens, places):
    rows = np.arange(len(tokens), dtype=np.int32)
    return StepInputs(
        token_ids=tokens.astype(np.int32),
        positions=places,
        query_starts=np.arange(len(tokens) + 1, dtype=np.int32),
        context_lens=places + 1,
        block_tables=tables(len(tokens)),
        logit_rows=rows,
    )


def test_greedy_text_is_that_of_hugging_face(hf_smollm2, prompts, answers):
    """Every token must be the one that Hugging Face finds most likely after those before it."""
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([[*prompt, *answer[:-1]]])
        with torch.no_grad():
            logits = hf_smollm2(tokens, logits_to_keep=NUM_TOKENS).logits[0]
        assert logits.argmax(-1).tolist() == answer.tolist()
