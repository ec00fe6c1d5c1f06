"""Block hashes: keyed BLAKE2b-128 chains, in which one hash stands for a whole prefix.

hash(block) = BLAKE2b-128(key, parent hash | token ids, u32 little-endian | digest of the extras).
Without the key nobody can predict a hash, nor make two prompts collide.
"""

import hashlib
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.native import hashing

HASH_BYTES = 16
ROOT = bytes(HASH_BYTES)  # the parent of a first block

TokenIds = Sequence[int] | npt.NDArray[np.integer]

_BLOCK_DOMAIN = b"stafette.block"
_EXTRAS_DOMAIN = b"stafette.extras"
_MAX_KEY_BYTES = hashlib.blake2b.MAX_KEY_SIZE
_NATIVE_FROM_BLOCKS = 4  # below, a call into the library costs more than it saves
_TOKEN_BYTES = 4
_HASH = np.dtype(f"V{HASH_BYTES}")  # opaque items come out as bytes
_TOKEN_REMEDY = "token ids must be whole numbers in 0..2**32-1"


@dataclass(frozen=True, slots=True)
class Extras:
    """What else KV depends on: blocks that differ here never share a hash."""

    lora: str = ""
    salt: str = ""  # the tenant's
    media: tuple[bytes, ...] = ()  # content hashes of the images and sounds in these blocks


NO_EXTRAS = Extras()


class BlockHasher:
    """Hashes the full blocks of token sequences, for one key, block size and model."""

    def __init__(
        self, key: bytes | str, block_size: int, model: str = "", native: bool = True
    ) -> None:
        if block_size < 1:
            raise InvalidValue("block_size", block_size, "must be at least 1")
        self.block_size = block_size
        self.model = model
        self._key = _fitting(key.encode() if isinstance(key, str) else bytes(key))
        self._start = self._hash_of(_BLOCK_DOMAIN)
        self._native = hashing.prepare(self._key, _BLOCK_DOMAIN) if native else None
        self._digest = lru_cache(maxsize=1024)(self._digest_extras)

    def hash_blocks(
        self, tokens: TokenIds, parent: bytes = ROOT, extras: Extras = NO_EXTRAS
    ) -> list[bytes]:
        """Return the hashes of all full blocks of `tokens`, which follow the block `parent`."""
        joined = self.hash_words(token_words(tokens), parent, extras)
        hashes: list[bytes] = np.frombuffer(joined, _HASH).tolist()
        return hashes

    def hash_words(self, words: bytes, parent: bytes = ROOT, extras: Extras = NO_EXTRAS) -> bytes:
        """Return the same hashes as one run of bytes, of tokens as u32 little-endian bytes."""
        step = self.block_size * _TOKEN_BYTES
        num_blocks = len(words) // step
        if len(parent) != HASH_BYTES:
            raise InvalidValue("parent", parent, f"must be a hash of {HASH_BYTES} bytes")
        digest = self._digest(extras)
        if self._native is not None and num_blocks >= _NATIVE_FROM_BLOCKS:
            return self._native.hashes(words, step, parent, digest)
        return b"".join(self._chain(words[: num_blocks * step], parent, digest))

    @cached_property
    def fingerprint(self) -> bytes:
        """The same for all hashers of one key, block size and model, and for no others."""
        return self.hash_words(bytes(self.block_size * _TOKEN_BYTES))

    def _chain(self, words: bytes, parent: bytes, digest: bytes) -> list[bytes]:
        hashes = []
        step = self.block_size * _TOKEN_BYTES
        for start in range(0, len(words), step):
            state = self._start.copy()
            state.update(parent)
            state.update(words[start : start + step])
            state.update(digest)
            parent = state.digest()
            hashes.append(parent)
        return hashes

    def _digest_extras(self, extras: Extras) -> bytes:
        """Hash the extras, each behind its length: no two of them encode alike."""
        state = self._hash_of(_EXTRAS_DOMAIN)
        texts = (self.model, extras.lora, extras.salt)
        for part in (*(text.encode() for text in texts), *extras.media):
            state.update(len(part).to_bytes(8, "little"))
            state.update(part)
        return state.digest()

    def _hash_of(self, domain: bytes) -> "hashlib.blake2b":
        return hashlib.blake2b(digest_size=HASH_BYTES, key=self._key, person=domain)


def _fitting(key: bytes) -> bytes:
    """Return the key, hashed when it is longer than BLAKE2b takes."""
    return key if len(key) <= _MAX_KEY_BYTES else hashlib.blake2b(key).digest()


def token_words(tokens: TokenIds) -> bytes:
    """Return the token ids as u32 little-endian bytes."""
    if isinstance(tokens, np.ndarray):
        return _array_words(tokens)
    try:
        words = array("I", tokens)
    except (OverflowError, TypeError) as error:
        raise InvalidValue("tokens", str(error), _TOKEN_REMEDY) from None
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _array_words(tokens: npt.NDArray[np.integer]) -> bytes:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        shown = f"{tokens.dtype}{list(tokens.shape)}"
        raise InvalidValue("tokens", shown, "must be a flat array of whole numbers")
    if tokens.dtype != np.uint32 and len(tokens):
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= 1 << 32:
            raise InvalidValue("tokens", (least, most), _TOKEN_REMEDY)
    return tokens.astype("<u4", copy=False).tobytes()
