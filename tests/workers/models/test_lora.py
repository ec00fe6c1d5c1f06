"""LoRA adapters, against Hugging Face's weights with the same delta merged in."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stafette.workers.config import EngineConfig
from stafette.workers.errors import CheckpointError, ConfigError
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner

EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Peft:
    """An adapter of random values, as PEFT saves it."""

    def __init__(self, model, targets, rank=4, seed=0, **config):
        self.config = dict(
            peft_type="LORA", r=rank, lora_alpha=8, target_modules=targets, bias="none"
        )
        self.config |= config
        self.tensors = {}
        generator = torch.Generator().manual_seed(seed)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in targets:
                outputs, inputs = module.weight.shape
                down = torch.randn(rank, inputs, generator=generator) * 0.2
                up = torch.randn(outputs, rank, generator=generator) * 0.2
                self.tensors[f"base_model.model.{name}.lora_A.weight"] = down
                self.tensors[f"base_model.model.{name}.lora_B.weight"] = up

    def save(self, folder):
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, folder / "adapter_model.safetensors")
        return str(folder)

    def merged(self, model):
        rank = self.config["r"]
        scale = self.config["lora_alpha"] / (
            math.sqrt(rank) if self.config.get("use_rslora") else rank
        )
        merged = copy.deepcopy(model)
        for name, module in merged.named_modules():
            key = f"base_model.model.{name}.lora_A.weight"
            if key in self.tensors:
                up = self.tensors[key.replace("lora_A", "lora_B")]
                module.weight.data += scale * up @ self.tensors[key]
        return merged


@pytest.fixture(scope="module")
def model(toys):
    return toys.hf("llama")


@pytest.fixture
def runner(toys, model):
    config = EngineConfig(
        dtype="float32", device="cpu", runner="torch", enable_lora=True, max_loras=3
    )
    runner = TorchRunner(config, toys.checkpoint(model))
    runner.allocate_kv(8)
    return runner


def prompts():
    return [np.random.default_rng(seed).integers(0, 97, 9).astype(np.int32) for seed in range(3)]


def logits(runner, slots):
    """Run the three prompts in one step, each with its adapter."""
    inputs = StepInputs(
        token_ids=np.concatenate(prompts()),
        positions=np.tile(np.arange(9, dtype=np.int32), 3),
        query_starts=np.arange(0, 28, 9, dtype=np.int32),
        context_lens=np.full(3, 9, np.int32),
        block_tables=np.arange(3, dtype=np.int32)[:, None],
        logit_rows=np.arange(27, dtype=np.int32),
        lora_slots=np.array(slots, np.int32),
    )
    return runner.forward(inputs).logits.split(9)


def expected(model, prompt):
    with torch.no_grad():
        return model(torch.from_numpy(prompt)[None].long()).logits[0]


def test_adapters_of_one_batch_answer_as_if_merged_each_alone(runner, model, tmp_path):
    everywhere = Peft(model, EVERYWHERE, seed=1)
    attention = Peft(model, ["q_proj", "v_proj"], rank=2, seed=2, use_rslora=True)
    runner.add_lora(0, everywhere.save(tmp_path / "everywhere"))
    runner.add_lora(2, attention.save(tmp_path / "attention"))

    rows = logits(runner, [2, -1, 0])

    for ours, hf, prompt in zip(
        rows, (attention.merged(model), model, everywhere.merged(model)), prompts(), strict=True
    ):
        torch.testing.assert_close(ours, expected(hf, prompt), atol=1e-4, rtol=0)


def test_a_slot_can_be_given_to_another_adapter(runner, model, tmp_path):
    first, second = Peft(model, EVERYWHERE, seed=1), Peft(model, ["o_proj"], seed=2)
    runner.add_lora(1, first.save(tmp_path / "first"))
    runner.remove_lora(1)

    runner.add_lora(1, second.save(tmp_path / "second"))

    merged = expected(second.merged(model), prompts()[0])
    torch.testing.assert_close(logits(runner, [1, 1, 1])[0], merged, atol=1e-4, rtol=0)


def test_a_batch_without_adapters_is_untouched_by_those_loaded(runner, model, tmp_path):
    before = torch.cat(logits(runner, [-1, -1, -1]))
    runner.add_lora(0, Peft(model, EVERYWHERE).save(tmp_path / "adapter"))

    assert torch.equal(torch.cat(logits(runner, [-1, -1, -1])), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(r=65), "r = 65: must be 1 to 64; max_lora_rank"),
        (dict(r=0), "r = 0: must be 1"),
        (dict(r=3), "must be"),
        (dict(lora_alpha=None), "lora_alpha = None"),
        (dict(bias="all"), "bias = 'all'"),
        (dict(use_dora=True), "use_dora"),
        (dict(peft_type="IA3"), "peft_type = 'IA3'"),
        (dict(target_modules=["q_proj", "o_proj"]), "layers.0.self_attn.o_proj.lora_A.*missing"),
    ],
)
def test_an_adapter_that_cannot_be_served_says_which_field_is_wrong(
    runner, model, tmp_path, change, message
):
    adapter = Peft(model, ["q_proj"])
    adapter.config |= change

    with pytest.raises(CheckpointError, match=message):
        runner.add_lora(0, adapter.save(tmp_path / "adapter"))


def test_an_adapter_with_half_a_pair_names_the_other_half(runner, model, tmp_path):
    adapter = Peft(model, ["q_proj"])
    del adapter.tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]

    with pytest.raises(CheckpointError, match=r"layers.1.self_attn.q_proj.lora_B.*missing"):
        runner.add_lora(0, adapter.save(tmp_path / "adapter"))


def test_an_adapter_for_another_matrix_lists_those_that_can_have_one(runner, model, tmp_path):
    adapter = Peft(model, ["lm_head"])

    with pytest.raises(CheckpointError, match="down_proj, gate_proj, k_proj"):
        runner.add_lora(0, adapter.save(tmp_path / "adapter"))


def test_an_adapter_of_another_model_names_the_shapes(runner, toys, tmp_path):
    adapter = Peft(toys.hf("llama", hidden_size=60), ["q_proj"])

    with pytest.raises(CheckpointError, match=r"q_proj.lora.*\(4, 48\)"):
        runner.add_lora(0, adapter.save(tmp_path / "adapter"))


def test_a_folder_without_an_adapter_says_so(runner, tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config.json"):
        runner.add_lora(0, str(tmp_path))


def test_a_slot_past_max_loras_is_refused(runner, model, tmp_path):
    with pytest.raises(ConfigError, match="max_loras = 3"):
        runner.add_lora(3, Peft(model, ["q_proj"]).save(tmp_path / "adapter"))


def test_adapters_need_their_flag(toys, model, tmp_path):
    config = EngineConfig(dtype="float32", device="cpu", runner="torch")
    runner = TorchRunner(config, toys.checkpoint(model))

    with pytest.raises(ConfigError, match="enable_lora = False"):
        runner.add_lora(0, str(tmp_path))
