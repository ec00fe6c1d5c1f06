"""Every architecture through the whole engine: files in, the reference's tokens out."""

import copy
import json
import os
import signal

import pytest
import torch
from safetensors.torch import save_file

from stafette.workers import LLM, SamplingParams
from stafette.workers.errors import ConfigError, EngineDead, RequestError

NUM_TOKENS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
PROMPTS = [[5, 17, 33, 8], list(range(40, 75)), [9] * 20]
FLAGS = dict(
    tokenizer="smollm2",  # the toys have none; their prompts are tokens
    dtype="float32",
    runner="torch",
    max_num_seqs=8,
    max_model_len=128,
    num_kv_blocks=64,
    block_size=8,
    max_num_batched_tokens=24,  # prompts come in chunks, beside sequences that decode
)


def saved(model, folder):
    model.save_pretrained(folder)
    return str(folder)


def answers(llm, prompts=PROMPTS, **options):
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False, **options)
    return [output.outputs[0].token_ids for output in outputs]


def reference(model, prompts=PROMPTS):
    """Greedy, one full forward a token: slow and plain."""
    found = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(NUM_TOKENS):
            with torch.inference_mode():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        found.append(tokens[len(prompt) :])
    return found


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"])
def test_an_architecture_gives_the_tokens_of_the_reference(toys, tmp_path, architecture):
    model = toys.hf(architecture)

    with LLM(saved(model, tmp_path), **FLAGS) as llm:
        assert answers(llm) == reference(model)


def test_two_ranks_give_the_tokens_of_one_and_a_killed_one_is_an_error(toys, tmp_path):
    model = toys.hf("llama")

    with LLM(saved(model, tmp_path), tensor_parallel_size=2, **FLAGS) as llm:
        assert answers(llm) == reference(model)

        os.kill(llm.engine.executor.runner._ranks[0].pid, signal.SIGKILL)
        with pytest.raises(EngineDead, match="rank 1"):
            answers(llm)


def save_adapter(model, folder, seed):
    """Write an adapter on q_proj and down_proj; return the model with it merged."""
    generator = torch.Generator().manual_seed(seed)
    merged, tensors = copy.deepcopy(model), {}
    for name, module in merged.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            outputs, inputs = module.weight.shape
            down = torch.randn(4, inputs, generator=generator) * 0.3
            up = torch.randn(outputs, 4, generator=generator) * 0.3
            tensors[f"base_model.model.{name}.lora_A.weight"] = down
            tensors[f"base_model.model.{name}.lora_B.weight"] = up
            module.weight.data += up @ down  # lora_alpha / r is 1
    folder.mkdir()
    targets = ["q_proj", "down_proj"]
    config = dict(peft_type="LORA", r=4, lora_alpha=4, target_modules=targets, bias="none")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return merged


def test_adapters_come_and_go_and_never_share_kv(toys, tmp_path):
    model = toys.hf("llama")
    first, second = (save_adapter(model, tmp_path / f"lora{i}", seed=i) for i in (1, 2))

    with LLM(saved(model, tmp_path / "base"), enable_lora=True, max_loras=1, **FLAGS) as llm:
        llm.load_lora("style", str(tmp_path / "lora1"))
        assert answers(llm) == reference(model)
        assert answers(llm, lora="style") == reference(first)
        with pytest.raises(RequestError, match=r"lora = 'other': all 1 slots are taken"):
            llm.load_lora("other", str(tmp_path / "lora2"))

        llm.unload_lora("style")
        llm.load_lora("style", str(tmp_path / "lora2"))

        assert answers(llm, lora="style") == reference(second)
        with pytest.raises(RequestError, match=r"lora = 'other': is not loaded; loaded: style"):
            answers(llm, lora="other")


def test_an_adapter_in_use_is_not_unloaded(toys, tmp_path):
    model = toys.hf("llama")
    save_adapter(model, tmp_path / "lora", seed=1)

    with LLM(saved(model, tmp_path / "base"), enable_lora=True, **FLAGS) as llm:
        llm.load_lora("style", str(tmp_path / "lora"))
        for _ in llm.stream(PROMPTS[0], GREEDY, lora="style"):
            with pytest.raises(RequestError, match="1 requests use it"):
                llm.unload_lora("style")
            break
        llm.unload_lora("style")


def test_adapters_need_their_flag(toys, tmp_path):
    with LLM(saved(toys.hf("llama"), tmp_path), **FLAGS) as llm:
        with pytest.raises(ConfigError, match="enable_lora = False"):
            llm.load_lora("style", "anywhere")
