"""Adapters through the fleet: prompts that are handed over, and workers that lack one."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from stafette.platform.frontend.errors import Unavailable
from stafette.workers import LLM, SamplingParams

STORY = "Once upon a time there was a relay team that ran through seven countries. "
FLAGS = {"runner": "torch", "dtype": "float32", "device": "cpu"}
HIDDEN, RANK, NUM_LAYERS = 576, 4, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter of random values for the embedded model, as PEFT saves it."""
    folder, pick = tmp_path_factory.mktemp("lora"), np.random.default_rng(0)
    tensors = {}
    for layer in range(NUM_LAYERS):
        for side, shape in (("A", (RANK, HIDDEN)), ("B", (HIDDEN, RANK))):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight"
            tensors[name] = (pick.standard_normal(shape) * 0.2).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"bias": "none"}))
    return str(folder)


@pytest.fixture(scope="module")
def texts(folder):
    """What one engine alone answers, with the adapter and without."""
    flags = FLAGS | {"max_model_len": 512, "num_kv_blocks": 128, "enable_lora": True}
    wanted = SamplingParams(temperature=0.0, max_tokens=12)
    with LLM(model="smollm2", num_threads=2, **flags) as llm:
        llm.load_lora("style", folder)
        return {
            lora: llm.generate(STORY * 6, wanted, use_tqdm=False, lora=lora)[0].outputs[0].text
            for lora in ("style", None)
        }


async def test_an_adapters_prompt_is_handed_over_and_found_again(make_rig, folder, texts):
    rig = make_rig(loras=("style",))
    options = {"loras": {"style": folder}, "engine": FLAGS | {"enable_lora": True}}
    await rig.start("p0", "d0", **options)
    rig.keep_apart("p0", "d0")

    def request(name, lora):
        return rig.request(name, STORY * 6, lora=lora, max_tokens=12)

    answers = [await rig.answer(request(f"r{lora}", lora)) for lora in ("style", None)]

    assert texts["style"] != texts[None]
    assert answers == [([texts["style"]], ["length"]), ([texts[None]], ["length"])]
    blocks = len(rig.tokenizer.encode(STORY * 6)) // 16
    assert (await rig.stats("d0"))["pulled_tokens"] == 2 * 16 * blocks
    assert rig.dispatcher.status().loras == ("style",)
    await rig.answer(request("again", "style"))
    predicted = rig.dispatcher.placement("again")["predicted"]
    assert predicted["cached_tokens"] == 16 * blocks


async def test_a_worker_without_the_adapter_is_not_asked(make_rig):
    rig = make_rig(loras=("style",), wait_s=0.2)
    await rig.start("b0")

    with pytest.raises(Unavailable, match="has no LoRA adapter 'style'"):
        await rig.answer(rig.request("r", STORY, lora="style"))
