"""A worker whose tensor-parallel ranks are on two nodes: answers, deaths, a new start."""

from contextlib import suppress

import psutil
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PROMPTS = [f"Chapter {i}. The runner who carried the baton number {i} was" for i in range(4)]
FLEET = """\
model: {model}
cluster: {{token: the token of a tested cluster}}
engine:
  tokenizer: smollm2
  dtype: float32
  device: cpu
  runner: torch
  max_model_len: 256
  num_kv_blocks: 64
  num_threads: 1
pools:
  prefill: {{num_cpus: 0.5}}
  decode: {{num_cpus: 0.5}}
frontend: {{served_model_name: [toy]}}
service: {{beat_s: 0.2, silence_s: 5}}
dispatch: {{wait_s: 120}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("toy")
    LlamaForCausalLM(LlamaConfig(vocab_size=49_152, **sizes, **heads)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def fleet(model, tmp_path_factory, free_port, start_fleet):
    settings = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    settings.write_text(FLEET.format(model=model))
    with start_fleet(settings, free_port()) as fleet:
        yield fleet


async def ask(fleet, prompt: str) -> str:
    async with fleet.client() as client:
        answer = await client.completions.create(
            model="toy", prompt=prompt, max_tokens=8, temperature=0
        )
    return answer.choices[0].text


async def answers(fleet) -> list[str]:
    return [await ask(fleet, prompt) for prompt in PROMPTS]


async def until_handed_over(fleet) -> None:
    """Ask until a prompt was long enough for the prefill worker."""
    for number in range(50):
        await ask(fleet, f"{number} laps. " + "The baton changed hands once more. " * 20)
        if any(worker.get("pulled_tokens") for worker in fleet.workers()):
            return
    raise AssertionError("no prompt was handed over")


def far_ranks() -> list[psutil.Process]:
    """Return the ranks that run on another node than their worker's first one: Ray started them."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        if "ray::NodeRanks" in " ".join(process.info["cmdline"] or []):
            with suppress(psutil.NoSuchProcess):
                found += process.children()
    return found


async def test_ranks_of_two_nodes_are_one_worker_that_is_replaced_when_one_dies(fleet, await_that):
    alone = await answers(fleet)
    (before,) = fleet.names("decode")
    with fleet.second_node("second"):
        fleet.update("pools.decode={num_cpus: 0.5, nodes: 2, engine: {tensor_parallel_size: 2}}")
        await_that(lambda: fleet.names("decode") and before not in fleet.names("decode"))
        (together,) = fleet.names("decode")
        (rank,) = far_ranks()

        assert await answers(fleet) == alone
        await until_handed_over(fleet)

        rank.kill()
        assert await answers(fleet) == alone  # by whoever is there
        await_that(lambda: fleet.names("decode") - {together})
        (successor,) = far_ranks()
        assert successor != rank
        assert await answers(fleet) == alone
        fleet.update()  # back on one node
        await_that(lambda: not far_ranks())
        assert await answers(fleet) == alone
