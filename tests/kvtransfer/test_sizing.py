"""The arithmetic of KV blocks, with numbers that can be checked in the head."""

import pytest

from stafette.kvtransfer import sizing
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.sizing import KvShape

LLAMA_8B = KvShape(num_layers=32, num_kv_heads=8, head_dim=128)


def test_token_of_llama_8b_takes_128_kib():
    assert sizing.token_bytes(LLAMA_8B) == 2 * 32 * 8 * 128 * 2 == 128 << 10


def test_block_takes_as_much_as_its_tokens():
    assert sizing.block_bytes(LLAMA_8B, 16) == 2 << 20


def test_fp8_takes_half():
    half = KvShape(32, 8, 128, "fp8")

    assert sizing.block_bytes(half, 16) == 1 << 20


@pytest.mark.parametrize(("tp", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1), (32, 1)])
def test_ranks_share_the_heads_until_each_has_one(tp, heads):
    assert sizing.heads_per_rank(LLAMA_8B, tp) == heads
    assert sizing.block_bytes(LLAMA_8B, 16, tp) == heads * (256 << 10)


@pytest.mark.parametrize("tp", [3, 0, 12])
def test_ranks_that_do_not_fit_the_heads_are_refused(tp):
    with pytest.raises(InvalidValue, match=f"tp = {tp}"):
        sizing.heads_per_rank(LLAMA_8B, tp)


def test_last_block_of_a_prompt_may_be_partly_empty():
    assert [sizing.blocks_of(tokens, 16) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_only_whole_blocks_fit():
    assert sizing.blocks_in((4 << 20) - 1, 2 << 20) == 1


def test_bytes_travel_at_a_rate():
    assert sizing.transfer_s(50_000_000_000, 25) == 2.0
    with pytest.raises(InvalidValue, match="gb_per_s = 0"):
        sizing.transfer_s(1, 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("123", 123),
        ("10B", 10),
        ("1KiB", 1024),
        ("1.5 MiB", 3 << 19),
        ("80GiB", 80 << 30),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_read_with_their_units(text, size):
    assert sizing.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1 gib", "1XB", "nan", "1e3GiBB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InvalidValue, match="must be a number of bytes, or such as 80GiB"):
        sizing.parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1023, "1,023 B"), (2 << 20, "2 MiB"), (3 << 50, "3,072 TiB")],
)
def test_sizes_are_shown_with_few_digits(size, shown):
    assert sizing.format_bytes(size) == shown


@pytest.mark.parametrize(
    ("shape", "field"), [((0, 8, 128), "num_layers"), ((1, 8, 128, "int4"), "dtype")]
)
def test_shape_that_cannot_be_is_refused(shape, field):
    with pytest.raises(InvalidValue, match=field):
        KvShape(*shape)
