"""Each rung is one more switch of the same engine, under the same load and in the same memory."""

from pathlib import Path

import pytest
import torch

from benchmarks.engine import ladder
from benchmarks.engine.random_qwen3 import write
from benchmarks.engine.workload import Workload
from stafette.workers.config import EngineConfig
from stafette.workers.weights.checkpoint import GroupedWeight
from stafette.workers.weights.opening import open_checkpoint

LADDERS = [
    ladder.cpu_ladder(),
    ladder.quick_ladder(),
    ladder.gpu_ladder(Path("dense"), Path("packed")),
]
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.mark.parametrize("each", LADDERS)
def test_every_rung_is_a_valid_configuration(each):
    for number in range(len(each.rungs)):
        EngineConfig(**each.flags(number))


@pytest.mark.parametrize("each", LADDERS)
def test_a_rung_changes_its_own_flags_and_keeps_those_below(each):
    for number in range(1, len(each.rungs)):
        below = each.flags(number - 1)
        assert each.flags(number) == below | each.rungs[number].flags
        assert each.flags(number) != below


@pytest.mark.parametrize("each", LADDERS)
def test_the_longest_request_fits_and_prefill_in_one_piece_does_too(each):
    work, flags = each.workload, each.flags(0)
    longest = work.prefix_tokens + work.tail_tokens[1]

    assert longest + work.output_tokens[1] <= flags["max_model_len"]
    assert longest <= flags["max_num_batched_tokens"]


def test_the_first_rung_is_a_static_batch_in_preallocated_memory():
    flags = ladder.cpu_ladder().flags(0)

    assert not flags["continuous_batching"]
    assert flags["preallocate_kv"]
    assert flags["attention_backend"] == "reference"
    assert flags["runner"] == "torch"


def test_requests_are_the_same_for_the_same_seed_and_share_their_beginnings():
    work = Workload(20, 2, 8, (1, 30), (2, 9))

    requests = work.build(1)

    assert requests == work.build(1)
    assert requests != work.build(2)
    assert len({tuple(request.prompt_token_ids[:8]) for request in requests}) == 2
    assert all(9 <= len(request.prompt_token_ids) <= 38 for request in requests)
    assert all(2 <= request.params.max_tokens <= 9 for request in requests)


def test_decode_that_reads_its_weights_at_half_the_bandwidth_has_a_share_of_a_half():
    result = {"weights_mib": 1024.0, "tpot_ms": 2.0}

    assert ladder.bandwidth_share(result, 2**30 / 1e-3) == pytest.approx(0.5)
    assert ladder.bandwidth_share(result, None) is None
    assert ladder.bandwidth_share({}, 1e12) is None


def test_medians_take_each_figure_by_itself():
    results = [{"a": 1.0, "b": 30.0}, {"a": 2.0, "b": 10.0}, {"a": 9.0, "b": 20.0}]

    assert ladder.medians(results) == {"a": 2.0, "b": 20.0}
    assert ladder.medians([]) == {}


def test_the_random_checkpoint_is_whole_and_written_once(tmp_path):
    directory = write(tmp_path / "model", **TINY)
    written = (directory / "model.safetensors").stat().st_mtime_ns

    checkpoint = open_checkpoint(str(write(directory, **TINY)))

    assert checkpoint.spec.architecture == "qwen3"
    assert checkpoint.spec.qk_norm
    assert (directory / "model.safetensors").stat().st_mtime_ns == written
    assert len(list(checkpoint.names())) >= 2 + 2 * 11


def test_the_packed_checkpoint_has_weights_like_the_dense_one(tmp_path):
    sizes = {**TINY, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}

    packed = open_checkpoint(str(write(tmp_path / "packed", quantized=True, **sizes)))
    dense = open_checkpoint(str(write(tmp_path / "dense", **sizes)))

    name = "model.layers.1.mlp.down_proj.weight"
    spread = [each.load_dense(name, torch.float32).std().item() for each in (packed, dense)]
    assert isinstance(packed.load(name), GroupedWeight)
    assert spread[0] == pytest.approx(spread[1], rel=0.2)
