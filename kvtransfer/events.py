"""KV events: what a worker tells of its cache, and their form on the wire.

The batches of a worker carry a gapless sequence number within an epoch, one life of that worker.
The wire form is msgpack: [worker id, epoch, seq, timestamp, snapshot?, [[tag, ...], ...]]. The
hashes of an event are all of one size, and travel as that size and one run of bytes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.strict import each, exact, number, octets, pack, text, unpack, whole

Tier = Literal["device", "host", "disk", "peer"]

MAX_MESSAGE_BYTES = 64 << 20  # a snapshot of three million blocks fits
MAX_HASH_BYTES = 64  # ours have 16, other engines' up to 32
MAX_NAME_BYTES = 256
_TIERS = frozenset(get_args(Tier))
_U64_END = 1 << 64
_U32_END = 1 << 32


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Blocks that can be found now, each the child of the one before it."""

    parent: bytes | None  # of the first; None when it begins a sequence, or nobody told
    hashes: tuple[bytes, ...]
    tier: Tier = "device"
    token_ids: tuple[int, ...] = ()  # from workers whose hashes are not ours: to compute ours
    block_size: int = 0  # comes with token_ids
    lora: str = ""  # comes with token_ids


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    hashes: tuple[bytes, ...]
    tier: Tier | None = "device"  # None: wherever they were


@dataclass(frozen=True, slots=True)
class AllCleared:
    """Nothing is cached any more, on any tier."""


KvEvent = BlockStored | BlockRemoved | AllCleared


@dataclass(frozen=True, slots=True)
class EventBatch:
    """What happened at one moment; as a snapshot, all that is there as of `seq`."""

    worker_id: str
    epoch: int
    seq: int
    timestamp: float
    events: tuple[KvEvent, ...]
    snapshot: bool = False


def encode(batch: EventBatch) -> bytes:
    """Return the batch's wire form."""
    events = [_pack_event(event) for event in batch.events]
    head = [batch.worker_id, batch.epoch, batch.seq, batch.timestamp, batch.snapshot]
    data = pack([*head, events])
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidValue("batch", f"{len(data)} bytes", f"must be at most {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> EventBatch:
    """Read a batch; MalformedMessage for what is not one."""
    match unpack(data, MAX_MESSAGE_BYTES):
        case [worker_id, epoch, seq, timestamp, snapshot, events]:
            return EventBatch(
                worker_id=text(worker_id, "worker id", MAX_NAME_BYTES),
                epoch=whole(epoch, "epoch", _U64_END),
                seq=whole(seq, "seq", _U64_END),
                timestamp=number(timestamp, "timestamp"),
                events=each(events, "events", _read_event),
                snapshot=exact(snapshot, "snapshot", bool),
            )
    raise MalformedMessage("batch", "[worker id, epoch, seq, timestamp, snapshot, events]")


def read_content(
    tokens: object, block_size: object, lora: object, num_blocks: int
) -> tuple[tuple[int, ...], int, str]:
    """Return the tokens of `num_blocks` blocks, all or none, the block size, the adapter's name."""
    ids = each(tokens, "token ids", lambda token: whole(token, "token id", _U32_END))
    size = whole(block_size, "block size", _U32_END)
    if ids and len(ids) != size * num_blocks:
        raise MalformedMessage("token ids", f"{num_blocks} blocks of {size} tokens")
    return ids, size, text(lora, "lora", MAX_NAME_BYTES)


def _pack_event(event: KvEvent) -> list[object]:
    match event:
        case BlockStored():
            content = [event.token_ids, event.block_size, event.lora] if event.block_size else []
            return ["stored", event.parent, *_join(event.hashes), event.tier, *content]
        case BlockRemoved():
            return ["removed", *_join(event.hashes), event.tier]
        case AllCleared():
            return ["cleared"]


def _read_event(value: object) -> KvEvent:
    match value:
        case ["cleared"]:
            return AllCleared()
        case ["removed", size, data, tier]:
            return BlockRemoved(_split(size, data), None if tier is None else _tier(tier))
        case ["stored", parent, size, data, tier]:
            return BlockStored(_parent(parent), _split(size, data), _tier(tier))
        case ["stored", parent, size, data, tier, tokens, block_size, lora]:
            hashes = _split(size, data)
            content = read_content(tokens, block_size, lora, len(hashes))
            return BlockStored(_parent(parent), hashes, _tier(tier), *content)
    raise MalformedMessage("event", "stored, removed or cleared, with their fields")


def _parent(value: object) -> bytes | None:
    return None if value is None else octets(value, "hash", MAX_HASH_BYTES)


def _join(hashes: tuple[bytes, ...]) -> tuple[int, bytes]:
    """Return the size of one hash, and all of them."""
    sizes = set(map(len, hashes)) or {1}
    size = sizes.pop()
    if sizes or not 0 < size <= MAX_HASH_BYTES:
        remedy = f"must be of one size, 1..{MAX_HASH_BYTES} bytes, within an event"
        raise InvalidValue("hashes", hashes, remedy)
    return size, b"".join(hashes)


def _split(size: object, data: object) -> tuple[bytes, ...]:
    width = whole(size, "hash size", MAX_HASH_BYTES + 1)
    joined = exact(data, "hashes", bytes)
    if not width or len(joined) % width:
        raise MalformedMessage("hashes", f"a multiple of {width or 'at least 1'} bytes")
    if not joined:
        return ()
    return tuple(np.frombuffer(joined, f"V{width}").tolist())  # opaque items come out as bytes


def _tier(value: object) -> Tier:
    if not isinstance(value, str) or value not in _TIERS:
        raise MalformedMessage("tier", " | ".join(sorted(_TIERS)))
    return value  # type: ignore[return-value]
