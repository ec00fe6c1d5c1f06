"""The size of the KV pool, and the errors that say which flag to change."""

import pytest

from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, OutOfMemory
from stafette.workers.kv_sizing import CPU_DEFAULT_BYTES, num_kv_blocks
from stafette.workers.runner.runner import KvLayout

LAYOUT = KvLayout(num_layers=2, num_kv_heads=1, block_size=16, head_dim=8, dtype="float16")
BLOCK_BYTES = 2 * 2 * 16 * 8 * 2  # layers, K and V, tokens, elements, bytes
MEBI = 1 << 20


def blocks(free_bytes, max_model_len=64, on_cpu=False, **flags):
    return num_kv_blocks(EngineConfig(**flags), LAYOUT, free_bytes, on_cpu, max_model_len)


def test_block_bytes_count_every_layer_head_and_token():
    assert LAYOUT.block_bytes == BLOCK_BYTES


def test_a_number_of_blocks_given_is_the_number_taken():
    assert blocks(MEBI, num_kv_blocks=100) == 100


def test_utilization_decides_when_nothing_else_is_given():
    assert blocks(100 * BLOCK_BYTES, gpu_memory_utilization=0.5) == 50


def test_no_more_is_taken_than_all_sequences_could_use():
    assert blocks(1 << 40, max_num_seqs=3) == 3 * 4


def test_a_cpu_leaves_memory_to_others():
    free = 1 << 40
    taken = blocks(free, max_model_len=1 << 20, on_cpu=True)

    assert taken == CPU_DEFAULT_BYTES // BLOCK_BYTES


def test_bytes_given_are_the_bytes_taken():
    assert blocks(MEBI, kv_cache_memory_bytes=10 * BLOCK_BYTES) == 10


def test_too_few_blocks_for_one_sequence_names_the_number_and_the_length_that_fits():
    with pytest.raises(ConfigError, match=r"num_kv_blocks = 3: .*needs 4.*max_model_len.* to 48"):
        blocks(MEBI, num_kv_blocks=3)


def test_more_blocks_than_memory_names_the_number_that_fits():
    with pytest.raises(OutOfMemory, match=r"num_kv_blocks = 100: .*lower it to 10"):
        blocks(10 * BLOCK_BYTES, num_kv_blocks=100)


def test_too_little_memory_for_one_sequence_names_the_length_that_fits():
    with pytest.raises(OutOfMemory, match=r"gpu_memory_utilization = 1.0: .*max_model_len.* to 32"):
        blocks(2 * BLOCK_BYTES, gpu_memory_utilization=1.0)


def test_more_bytes_than_memory_is_refused():
    with pytest.raises(OutOfMemory, match="kv_cache_memory_bytes"):
        blocks(BLOCK_BYTES, kv_cache_memory_bytes=10 * BLOCK_BYTES)
