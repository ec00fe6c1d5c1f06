"""Flags that cannot work are refused by name, with their bounds."""

import pytest

from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("block_size", 24, "power of two"),
        ("block_size", 1024, "power of two up to 512"),
        ("max_num_seqs", 0, "at least 1"),
        ("num_kv_blocks", 0, "at least 1"),
        ("gpu_memory_utilization", 0.0, "above 0 and at most 1"),
        ("gpu_memory_utilization", 1.1, "above 0 and at most 1"),
        ("max_num_batched_tokens", 16, "at least max_num_seqs = 256"),
        ("speculative_tokens", -1, "0 or more"),
        ("speculative_ngram_min", 9, "not exceed speculative_ngram_max = 4"),
        ("max_model_len", -5, "at least 1"),
        ("max_num_seqs", "8", "a whole number"),
        ("max_num_seqs", True, "a whole number"),
        ("max_model_len", 1.5, "a whole number or left out"),
        ("enable_lora", 1, "true or false"),
        ("model", None, "text"),
        ("runner", "fast", "one of auto, native, torch"),
        ("dtype", "float8", "one of auto, bfloat16"),
        ("device", "tpu", "one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_flag_is_named_with_its_value_and_remedy(flag, value, remedy):
    with pytest.raises(ConfigError, match=remedy) as caught:
        EngineConfig(**{flag: value})

    assert caught.value.field == flag
    assert caught.value.value == value


def test_the_defaults_are_valid():
    assert EngineConfig().max_num_batched_tokens == 2048
