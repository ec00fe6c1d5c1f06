"""What the first host of a worker tells the others of its blocks, and what they answer.

All are notifications between agents of one worker: a kind, and plain values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.kvtransfer.connectors.p2p.messages import MAX_PIECE_BLOCKS
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.notifications import MAX_PAYLOAD_BYTES
from stafette.kvtransfer.strict import exact, octets, pack, text, unpack, whole

PREFIX = b"spread:"
_MAX_HASHES_BYTES = HASH_BYTES * MAX_PIECE_BLOCKS
_MAX_NUMBERS_BYTES = 4 * MAX_PIECE_BLOCKS
_MAX_TEXT_BYTES = 1_024
_U63_END = 1 << 63


@dataclass(frozen=True, slots=True)
class Blocks:
    """Neighbours in a prompt, to be loaded or passed on; `params` say from whom, or to whom."""

    kind: str  # load | save
    number: int  # by which the answer names them
    first: int
    hashes: tuple[bytes, ...]
    blocks: tuple[int, ...]
    params: Mapping[str, object]
    more: bool = False  # of the same load comes in another message

    def pack(self) -> bytes:
        numbers = np.array(self.blocks, "<u4").tobytes()
        where = [self.number, self.first, b"".join(self.hashes), numbers]
        return PREFIX + pack([self.kind, *where, dict(self.params), self.more])

    def pieces(self) -> "Iterator[Blocks]":
        """Yield it in parts that a notification can carry."""
        for start in range(0, len(self.blocks), MAX_PIECE_BLOCKS):
            some = slice(start, start + MAX_PIECE_BLOCKS)
            more = start + MAX_PIECE_BLOCKS < len(self.blocks)
            hashes, blocks = self.hashes[some], self.blocks[some]
            where = self.kind, self.number, self.first + start
            yield Blocks(*where, hashes, blocks, self.params, more)

    def and_then(self, rest: "Blocks") -> "Blocks":
        """Return both as one."""
        hashes, blocks = self.hashes + rest.hashes, self.blocks + rest.blocks
        return Blocks(self.kind, self.number, self.first, hashes, blocks, self.params, rest.more)


@dataclass(frozen=True, slots=True)
class Word:
    """Anything else: what is to be done, or was, with a load, a save or a hand-off."""

    kind: str  # peer | cancel | finish | give_up | relieve; loaded | released
    number: int = 0
    value: int = 0  # how many blocks have come
    words: str = ""
    content: bytes = b""

    def pack(self) -> bytes:
        words = self.words.encode()[:_MAX_TEXT_BYTES].decode(errors="ignore")
        return PREFIX + pack([self.kind, self.number, self.value, words, self.content])


def read(payload: bytes) -> Blocks | Word:
    """Read what `pack` made; MalformedMessage for what is not that."""
    match unpack(payload[len(PREFIX) :], MAX_PAYLOAD_BYTES):
        case ["load" | "save" as kind, number, first, hashes, blocks, dict(params), bool(more)]:
            joined = octets(hashes, "hashes", _MAX_HASHES_BYTES)
            numbers = octets(blocks, "blocks", _MAX_NUMBERS_BYTES)
            if len(joined) * 4 != len(numbers) * HASH_BYTES:
                raise MalformedMessage("spread blocks", "as many hashes as blocks")
            return Blocks(
                kind,
                whole(number, "number", _U63_END),
                whole(first, "first block", _U63_END),
                tuple(joined[i : i + HASH_BYTES] for i in range(0, len(joined), HASH_BYTES)),
                tuple(np.frombuffer(numbers, "<u4").tolist()),
                params,
                more,
            )
        case [kind, number, value, words, content]:
            return Word(
                text(kind, "kind", _MAX_TEXT_BYTES),
                whole(number, "number", _U63_END),
                whole(value, "value", _U63_END),
                text(words, "words", _MAX_TEXT_BYTES),
                exact(content, "content", bytes),
            )
    raise MalformedMessage("spread message", "blocks or a word")


def pack_params(params: Mapping[str, object]) -> bytes:
    return pack(dict(params))


def read_params(content: bytes) -> Mapping[str, object]:
    return exact(unpack(content, MAX_PAYLOAD_BYTES), "params", dict)
