"""Reads the KV events of stock vLLM and SGLang: msgpack [timestamp, [event, ...], dp rank].

In newer versions of vLLM the batch is a map of ts, events and data_parallel_rank. An event is a
list that begins with its name, or, in newer versions, a map whose "type" is the name. Fields were
added at the end over the versions; those that we have no use for are ignored.
"""

from dataclasses import dataclass

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.events import (
    MAX_HASH_BYTES,
    MAX_MESSAGE_BYTES,
    AllCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    Tier,
    read_content,
)
from stafette.kvtransfer.strict import each, number, octets, unpack, whole

_FIELDS = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
    ),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}
_TIERS: dict[object, Tier] = {
    None: "device",
    "GPU": "device",
    "CPU": "host",
    "DISK": "disk",
    "CPU_TIER1": "host",  # these two are SGLang's, whose events are of the same form
    "CPU_TIER2": "disk",
}
_HASH_BYTES = 8  # of the hashes that are numbers
_U32_END = 1 << 32


@dataclass(frozen=True, slots=True)
class VllmBatch:
    timestamp: float
    events: tuple[KvEvent, ...]
    dp_rank: int = 0


def decode(data: bytes) -> VllmBatch:
    """Read a message's last part; MalformedMessage for what is not one."""
    match unpack(data, MAX_MESSAGE_BYTES):
        case [timestamp, events]:
            return _batch(timestamp, events, None)
        case [timestamp, events, rank]:
            return _batch(timestamp, events, rank)
        case {"ts": timestamp, "events": events, **rest}:
            return _batch(timestamp, events, rest.get("data_parallel_rank"))
    raise MalformedMessage("batch", "[timestamp, events, dp rank]")


def _batch(timestamp: object, events: object, rank: object) -> VllmBatch:
    read = each(events, "events", _read_event)
    dp_rank = 0 if rank is None else whole(rank, "dp rank", _U32_END)
    return VllmBatch(number(timestamp, "timestamp"), read, dp_rank)


def _read_event(value: object) -> KvEvent:
    name, fields = _named(value)
    match name:
        case "BlockStored":
            return _read_stored(fields)
        case "BlockRemoved":
            hashes = each(fields.get("block_hashes"), "hashes", _hash)
            medium = fields.get("medium")
            return BlockRemoved(hashes, None if medium is None else _tier(medium))
        case "AllBlocksCleared":
            return AllCleared()
    raise MalformedMessage("event", " | ".join(_FIELDS))


def _named(value: object) -> tuple[str, dict[object, object]]:
    """Return an event's name, and its fields by name."""
    match value:
        case [str(name), *values] if name in _FIELDS:
            return name, dict(zip(_FIELDS[name], values, strict=False))
        case {"type": str(name), **fields}:
            return name, fields
    raise MalformedMessage("event", "a list or map with its name")


def _read_stored(fields: dict[object, object]) -> BlockStored:
    hashes = each(fields.get("block_hashes"), "hashes", _hash)
    parent = fields.get("parent_block_hash")
    lora = _lora(fields.get("lora_name"), fields.get("lora_id"))
    content = read_content(fields.get("token_ids"), fields.get("block_size"), lora, len(hashes))
    first = None if parent is None else _hash(parent)
    return BlockStored(first, hashes, _tier(fields.get("medium")), *content)


def _lora(name: object, number: object) -> object:
    """Return the adapter's name; older versions send only its number."""
    if name is not None:
        return name
    return "" if number is None else str(whole(number, "lora id", _U32_END))


def _hash(value: object) -> bytes:
    """Return a hash as bytes; vLLM's own are bytes, or numbers where it cuts them to 64 bits."""
    if type(value) is int and -(1 << 63) <= value < 1 << 64:
        return (value % (1 << 64)).to_bytes(_HASH_BYTES, "little")
    return octets(value, "hash", MAX_HASH_BYTES)


def _tier(medium: object) -> Tier:
    tier = _TIERS.get(medium) if medium is None or isinstance(medium, str) else None
    if tier is None:
        raise MalformedMessage("medium", " | ".join(str(name) for name in _TIERS))
    return tier
