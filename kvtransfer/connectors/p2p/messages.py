"""What travels beside the blocks: what a request brings along, and the news of its blocks.

A request that is handed from one engine to another carries, under `p2p` in its parameters, whom its
blocks are taken from or given to. The news then go from owner to reader as notifications; an owner
that was not told of a reader returns them when the request has finished, for whoever carries them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.leases.ticket import MAX_TICKET_BYTES
from stafette.kvtransfer.metadata import MAX_PEER_NAME_BYTES
from stafette.kvtransfer.notifications import MAX_PAYLOAD_BYTES
from stafette.kvtransfer.strict import each, exact, octets, pack, text, unpack, whole

PARAMS = "p2p"  # the key in a request's parameters
PREFIX = b"p2p:"  # of every notification
MAX_PIECE_BLOCKS = 1_024  # in one piece of news: 20 KiB of hashes and numbers
MAX_RANKS = 1_024
_MAX_ID_BYTES = 128
_MAX_REASON_BYTES = 1_024
_U31_END = 1 << 31


@dataclass(frozen=True, slots=True)
class Take:
    """A request's blocks come from other engines."""

    id: str  # of this hand-off, nobody else's and hard to guess
    sources: tuple[str, ...]  # agents that may send news of them
    num_blocks: int | None = None  # that there will be; None: all that the prompt has
    news: tuple[bytes, ...] = ()  # what their owner returned, when it knew no reader

    def params(self) -> dict[str, object]:
        """Return what a request's parameters carry."""
        own: dict[str, object] = {"id": self.id, "sources": list(self.sources)}
        own |= {"num_blocks": self.num_blocks, "news": list(self.news)}
        return {PARAMS: {"take": own}}

    def tokens_beyond(self, num_hashes: int, block_size: int, num_held: int) -> int:
        """Return how much of a prompt comes, behind the tokens that are here already."""
        there = num_hashes if self.num_blocks is None else min(num_hashes, self.num_blocks)
        return max(0, there * block_size - num_held)

    @classmethod
    def find(cls, params: Mapping[str, object]) -> "Take | None":
        """Read a request's parameters; None when they speak of no such thing."""
        own = _own(params, "take")
        if own is None:
            return None
        count = own.get("num_blocks")
        return cls(
            _read_id(own.get("id")),
            each(own.get("sources", []), "p2p sources", _read_peer),
            None if count is None else whole(count, "p2p num_blocks", _U31_END),
            each(own.get("news", []), "p2p news", _read_octets),
        )


@dataclass(frozen=True, slots=True)
class Give:
    """A request's blocks are passed on to other engines."""

    id: str
    readers: tuple[str, ...] = ()  # agents that are told; none: the news are returned at the end

    def params(self) -> dict[str, object]:
        return {PARAMS: {"give": {"id": self.id, "readers": list(self.readers)}}}

    @classmethod
    def find(cls, params: Mapping[str, object]) -> "Give | None":
        own = _own(params, "give")
        if own is None:
            return None
        readers = each(own.get("readers", []), "p2p readers", _read_peer)
        return cls(_read_id(own.get("id")), readers)


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks that are ready: neighbours in a prompt, and the leases under which they are read."""

    handoff: str
    first: int
    hashes: tuple[bytes, ...]
    blocks: tuple[int, ...]  # the owner's numbers
    tickets: tuple[bytes, ...]  # one for each share of the blocks that this process has
    rank: int = 0
    num_ranks: int = 1  # that must all have sent theirs

    @property
    def end(self) -> int:
        return self.first + len(self.blocks)

    def pack(self) -> bytes:
        numbers = np.array(self.blocks, "<u4").tobytes()
        head = ["piece", self.handoff, self.first, b"".join(self.hashes), numbers]
        return PREFIX + pack([*head, list(self.tickets), self.rank, self.num_ranks])


@dataclass(frozen=True, slots=True)
class Ended:
    """An owner has nothing more to pass on."""

    handoff: str
    end: int  # of what it has passed on, as a place in the prompt
    reason: str = ""  # why there is not all; empty: there is

    def pack(self) -> bytes:
        shown = self.reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        return PREFIX + pack(["ended", self.handoff, self.end, shown])


def read_news(data: bytes) -> Piece | Ended:
    """Read what `pack` made; MalformedMessage for what is not that."""
    if not data.startswith(PREFIX):
        raise MalformedMessage("p2p news", f"bytes that begin with {PREFIX!r}")
    match unpack(data[len(PREFIX) :], MAX_PAYLOAD_BYTES):
        case ["piece", handoff, first, bytes(hashes), bytes(numbers), tickets, rank, num_ranks]:
            count = len(numbers) // 4
            sizes = (len(numbers), len(hashes)) == (4 * count, HASH_BYTES * count)
            if not sizes or not 0 < count <= MAX_PIECE_BLOCKS:
                expected = f"1..{MAX_PIECE_BLOCKS} blocks and as many hashes"
                raise MalformedMessage("p2p piece", expected)
            return Piece(
                _read_id(handoff),
                whole(first, "first block", _U31_END),
                tuple(hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES)),
                tuple(np.frombuffer(numbers, "<u4").tolist()),
                each(tickets, "tickets", _read_ticket),
                whole(rank, "rank", whole(num_ranks, "ranks", MAX_RANKS)),
                whole(num_ranks, "ranks", MAX_RANKS),
            )
        case ["ended", handoff, end, reason]:
            return Ended(
                _read_id(handoff),
                whole(end, "end", _U31_END),
                text(reason, "reason", _MAX_REASON_BYTES),
            )
    raise MalformedMessage("p2p news", "a piece or its end")


def _own(params: Mapping[str, object], side: str) -> dict[str, Any] | None:
    both = params.get(PARAMS)
    own = None if both is None else exact(both, "p2p", dict).get(side)
    return None if own is None else exact(own, f"p2p {side}", dict)


def _read_id(value: object) -> str:
    return text(value, "p2p id", _MAX_ID_BYTES)


def _read_peer(value: object) -> str:
    return text(value, "peer", MAX_PEER_NAME_BYTES)


def _read_ticket(value: object) -> bytes:
    return octets(value, "ticket", MAX_TICKET_BYTES)


def _read_octets(value: object) -> bytes:
    return octets(value, "p2p news", MAX_PAYLOAD_BYTES)
