"""Each token's bytes, so that text can be put together one token at a time.

`tokenizers` decodes whole sequences only. Its decoders for the models served here all come down to
a fixed spelling of each token, plus at most one space that is dropped at the very beginning.
"""

import json
from typing import Any

import tokenizers

from stafette.workers.errors import CheckpointError

_WORD_START = "▁"  # how SentencePiece writes a space
_BYTE_TOKEN_LENGTH = len("<0x00>")


class TokenBytes:
    """Bytes by token id, spelled when first asked for. An unknown id has none."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        rules = _rules(backend)
        self._byte_level = "ByteLevel" in rules
        self._byte_tokens = "ByteFallback" in rules
        self._strips = not rules.isdisjoint({"Strip", "Prepended"})
        self._spelled: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        spelled = self._spelled.get(token)
        if spelled is None:
            spelled = self._spelled[token] = self._spell(token)
        return spelled

    def without_prefix(self, spelled: bytes) -> bytes:
        """Return a text's first token without the space that encoding put before it."""
        return spelled[1:] if self._strips and spelled.startswith(b" ") else spelled

    def _spell(self, token: int) -> bytes:
        text = self._backend.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            return _from_byte_level(text)
        if self._byte_tokens and (byte := _byte_token(text)) is not None:
            return byte
        return text.replace(_WORD_START, " ").encode()


def _rules(backend: tokenizers.Tokenizer) -> set[str]:
    """Return the names of the decoder's steps. CheckpointError when we cannot follow them."""
    decoder = backend.decoder
    state: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder else {"type": "none"}
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    rules = set()
    for step in steps:
        rules.add(_known_rule(step))
    return rules


def _known_rule(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel" | "ByteFallback" | "Fuse" as name}:
            return str(name)
        case {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}:
            return "Replace"
        case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
            return "Strip" if start else "Fuse"
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}:
            return "Replace" if scheme == "never" else "Prepended"
    remedy = "is not supported; supported are ByteLevel, Metaspace and SentencePiece's sequence"
    raise CheckpointError("tokenizer decoder", step, remedy)


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's letters for bytes: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _from_byte_level(text: str) -> bytes:
    try:
        return bytes([_BYTES[letter] for letter in text])
    except KeyError:
        return text.encode()


def _byte_token(text: str) -> bytes | None:
    if len(text) != _BYTE_TOKEN_LENGTH or not text.startswith("<0x") or not text.endswith(">"):
        return None
    try:
        return bytes([int(text[3:5], 16)])
    except ValueError:
        return None
