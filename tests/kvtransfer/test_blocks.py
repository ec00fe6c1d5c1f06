"""Block hashes: the formula, what they depend on, and that native and Python agree."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.blocks import HASH_BYTES, ROOT, BlockHasher, Extras, token_words
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.native import hashing

needs_native = pytest.mark.skipif(hashing.load() is None, reason="the native library is not built")

token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=300)
names = st.text(max_size=12)
extras = st.builds(
    Extras, lora=names, salt=names, media=st.lists(st.binary(max_size=40), max_size=3).map(tuple)
)


@needs_native
@given(
    key=st.binary(max_size=80),
    block_size=st.integers(1, 70),
    num_blocks=st.integers(4, 9),  # fewer are left to hashlib
    seed=st.integers(0, 1000),
    parent=st.binary(min_size=16, max_size=16),
)
def test_native_hashes_are_hashlibs(key, block_size, num_blocks, seed, parent):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 2**32, num_blocks * block_size, dtype=np.uint32)

    native = BlockHasher(key, block_size).hash_blocks(tokens, parent)

    assert native == BlockHasher(key, block_size, native=False).hash_blocks(tokens, parent)
    assert len(set(native)) == num_blocks


def test_hash_is_keyed_blake2b_of_parent_tokens_and_extras():
    hasher = BlockHasher("secret", 4, model="toy")
    parts = [b"toy", b"", b"", b"picture"]
    encoded = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    digest = _blake(b"stafette.extras", encoded)

    first, second = hasher.hash_blocks([1, 2, 3, 4, 5, 6, 7, 8], extras=Extras(media=(b"picture",)))

    assert first == _blake(b"stafette.block", ROOT + struct.pack("<4I", 1, 2, 3, 4) + digest)
    assert second == _blake(b"stafette.block", first + struct.pack("<4I", 5, 6, 7, 8) + digest)


def test_only_full_blocks_are_hashed():
    hasher = BlockHasher(b"", 4)

    assert hasher.hash_blocks([1, 2, 3]) == []
    assert len(hasher.hash_blocks([1, 2, 3, 4, 5])) == 1


@given(token_lists, st.integers(0, 20))
def test_chain_can_be_resumed_behind_any_block(tokens, cut):
    hasher = BlockHasher(b"key", 8)
    whole = hasher.hash_blocks(tokens)
    cut = min(cut, len(whole))
    parent = whole[cut - 1] if cut else ROOT

    assert hasher.hash_blocks(tokens[cut * 8 :], parent) == whole[cut:]


def test_hash_depends_on_everything_before_it():
    hasher = BlockHasher(b"key", 2)

    one = hasher.hash_blocks([1, 2, 3, 4])
    other = hasher.hash_blocks([9, 2, 3, 4])

    assert not set(one) & set(other)


@given(st.lists(extras, min_size=2, max_size=6, unique=True))
def test_different_extras_never_share_a_hash(extras):
    hasher = BlockHasher(b"key", 2)

    hashes = {hasher.hash_blocks([1, 2], extras=one)[0] for one in extras}

    assert len(hashes) == len(extras)


def test_key_model_and_block_size_each_change_every_hash():
    hashers = [
        BlockHasher(b"key", 4, "m"),
        BlockHasher(b"other", 4, "m"),
        BlockHasher(b"", 4, "m"),
        BlockHasher(b"key", 4, "n"),
        BlockHasher(b"key", 2, "m"),
    ]

    assert len({hasher.hash_blocks([1, 2, 3, 4])[-1] for hasher in hashers}) == len(hashers)


def test_key_longer_than_blake2b_takes_is_hashed_first():
    long = b"k" * 100

    one = BlockHasher(long, 4).hash_blocks([1, 2, 3, 4])

    assert one == BlockHasher(hashlib.blake2b(long).digest(), 4).hash_blocks([1, 2, 3, 4])
    assert one != BlockHasher(long[:64], 4).hash_blocks([1, 2, 3, 4])


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint16])
def test_arrays_hash_like_lists(dtype):
    tokens = np.arange(200, dtype=dtype)[::2]

    assert BlockHasher(b"", 16).hash_blocks(tokens) == BlockHasher(b"", 16).hash_blocks(
        tokens.tolist()
    )


@pytest.mark.parametrize(
    "tokens",
    [
        [-1, 2],
        [2**32, 1],
        [1.5, 2],
        ["a", "b"],
        np.array([-1, 1]),
        np.array([2**32, 1]),
        np.array([1.0, 2.0]),
        np.zeros((2, 2), np.int32),
    ],
)
def test_what_is_no_token_id_is_refused(tokens):
    with pytest.raises(InvalidValue, match="tokens"):
        BlockHasher(b"", 2).hash_blocks(tokens)


def test_parent_that_is_no_hash_is_refused():
    with pytest.raises(InvalidValue, match="hash of 16 bytes"):
        BlockHasher(b"", 2).hash_blocks([1, 2], parent=b"short")


def test_block_size_below_one_is_refused():
    with pytest.raises(InvalidValue, match="block_size = 0"):
        BlockHasher(b"", 0)


def _blake(domain: bytes, message: bytes) -> bytes:
    return hashlib.blake2b(message, digest_size=HASH_BYTES, key=b"secret", person=domain).digest()


def test_words_give_the_same_hashes_as_one_run_of_bytes():
    for native in (True, False):
        hasher = BlockHasher("k", 4, native=native)
        hashes = hasher.hash_blocks(range(43))

        assert hasher.hash_words(token_words(range(43))) == b"".join(hashes)
        assert hasher.hash_words(token_words(range(20, 43)), hashes[4]) == b"".join(hashes[5:])


def test_fingerprint_tells_key_block_size_and_model():
    others = [BlockHasher("k", 8, "m"), BlockHasher("x", 4, "m"), BlockHasher("k", 4, "n")]

    fingerprint = BlockHasher("k", 4, "m").fingerprint

    assert fingerprint == BlockHasher("k", 4, "m", native=False).fingerprint
    assert fingerprint not in [other.fingerprint for other in others]
