"""Reads the KV events of stock vLLM and SGLang: msgpack [timestamp, [event, ...], dp rank].

In newer versions of vLLM the batch is a map of ts, events and data_parallel_rank. An event is a
list that begins with its name, or, in newer versions, a map whose "type" is the name. Fields were
added at the end over the versions; those that we have no use for are ignored, and so are events
that we have none for: a batch must not be lost over one of them.
"""

from collections.abc import Iterator
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

Fields = dict[object, object]

_FIELDS = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
        "kv_cache_spec_kind",
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}
_TIERS: dict[object, Tier] = {
    None: "device",
    "GPU": "device",
    "CPU": "host",
    "CPU_PINNED": "host",  # SGLang's, like the next two and the last one
    "CPU_TIER1": "host",
    "CPU_TIER2": "disk",
    "DISK": "disk",
    "STORAGE": "disk",  # vLLM's file system and object store, which before had names of their own
    "FS": "disk",
    "OBJ": "peer",
    "EXTERNAL": "peer",
}
# A hybrid model caches a block once for each group of layers, under one hash. Whether a prefix can
# be used is told by the groups that attend to all of it; a window drops its blocks much earlier.
_WHOLE_PREFIX = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
_REMOTE = "REMOTE"  # locality: not on the worker's host
_HASH_BYTES = 8  # of the hashes that are numbers
_U32_END = 1 << 32


@dataclass(frozen=True, slots=True)
class VllmBatch:
    timestamp: float
    events: tuple[KvEvent, ...]
    dp_rank: int = 0
    ignored: int = 0  # events of which we have no use, or never heard


class VllmReader:
    """Reads what one worker says, and learns from it which of its cache groups count."""

    def __init__(self) -> None:
        self._windows: set[object] = set()  # groups that do not keep whole prefixes

    def read(self, data: bytes) -> VllmBatch:
        """Read a message's last part; MalformedMessage for what is not one."""
        match unpack(data, MAX_MESSAGE_BYTES):
            case [timestamp, events]:
                return self._batch(timestamp, events, None)
            case [timestamp, events, rank]:
                return self._batch(timestamp, events, rank)
            case {"ts": timestamp, "events": events, **rest}:
                return self._batch(timestamp, events, rest.get("data_parallel_rank"))
        raise MalformedMessage("batch", "[timestamp, events, dp rank]")

    def _batch(self, timestamp: object, events: object, rank: object) -> VllmBatch:
        read = each(events, "events", self._read_event)
        dp_rank = 0 if rank is None else whole(rank, "dp rank", _U32_END)
        found = tuple(event for some in read for event in some)
        return VllmBatch(number(timestamp, "timestamp"), found, dp_rank, read.count([]))

    def _read_event(self, value: object) -> list[KvEvent]:
        """Return what it says in our words; nothing for an event to be ignored."""
        name, fields = _named(value)
        match name:
            case "BlockStored" if self._counts(fields):
                return list(_read_stored(fields))
            case "BlockRemoved" if self._counts(fields):
                return list(_read_removed(fields))
            case "AllBlocksCleared":
                return [AllCleared()]
        return []

    def _counts(self, fields: Fields) -> bool:
        """Tell whether the event's group keeps whole prefixes; only some events say what it is."""
        kind, group = fields.get("kv_cache_spec_kind"), fields.get("group_idx")
        group = None if group is None else whole(group, "group", _U32_END)
        if kind is None:
            return group is None or group not in self._windows
        if isinstance(kind, str) and kind in _WHOLE_PREFIX:
            self._windows.discard(group)
            return True
        self._windows.add(group)
        return False


def decode(data: bytes) -> VllmBatch:
    """Read one message by itself."""
    return VllmReader().read(data)


def _named(value: object) -> tuple[str, Fields]:
    """Return an event's name, and its fields by name."""
    match value:
        case [str(name), *values]:
            return name, dict(zip(_FIELDS.get(name, ()), values, strict=False))
        case {"type": str(name), **fields}:
            return name, fields
    raise MalformedMessage("event", "a list or map with its name")


def _read_removed(fields: Fields) -> Iterator[KvEvent]:
    hashes, tier = each(fields.get("block_hashes"), "hashes", _hash), _tier(fields)
    if fields.get("medium") is None:
        yield BlockRemoved(hashes, None)
    elif tier is not None:
        yield BlockRemoved(hashes, tier)


def _read_stored(fields: Fields) -> Iterator[KvEvent]:
    hashes = each(fields.get("block_hashes"), "hashes", _hash)
    parent = fields.get("parent_block_hash")
    before = None if parent is None else _hash(parent)
    lora = _lora(fields)
    tokens, size, name = read_content(
        fields.get("token_ids"), fields.get("block_size"), lora, len(hashes)
    )
    tier = _tier(fields)
    if tier is None:
        return
    plain = _num_plain(fields, len(hashes)) if tokens else 0
    if plain:
        yield BlockStored(before, hashes[:plain], tier, tokens[: plain * size], size, name)
        before = hashes[plain - 1]
    if tokens and plain < len(hashes):
        yield BlockStored(before, hashes[plain:], tier)
    elif not tokens:  # what was copied to another tier: each by itself, and no chain
        yield from (BlockStored(before, (each_hash,), tier) for each_hash in hashes)


def _num_plain(fields: Fields, num_blocks: int) -> int:
    """Return of how many blocks the tokens and the adapter are all that their hashes stand for.

    What else went into a hash, an image or a tenant's salt, goes into those of all blocks behind.
    """
    if fields.get("cache_salt") is not None or isinstance(fields.get("lora_name"), dict):
        return 0
    extra_keys = fields.get("extra_keys")
    if extra_keys is None:
        return num_blocks
    adapter = (fields.get("lora_name"), fields.get("lora_id"))
    keys = each(extra_keys, "extra keys", lambda one: one or ())
    return next((i for i, own in enumerate(keys) if not _only(own, adapter)), num_blocks)


def _only(keys: object, allowed: tuple[object, ...]) -> bool:
    return isinstance(keys, list | tuple) and all(key in allowed for key in keys)


def _lora(fields: Fields) -> object:
    """Return the adapter's name; older versions send only its number."""
    name, lora_id = fields.get("lora_name"), fields.get("lora_id")
    if name is not None and not isinstance(name, dict):  # there, SGLang's lists have a map of more
        return name
    return "" if lora_id is None else str(whole(lora_id, "lora id", _U32_END))


def _hash(value: object) -> bytes:
    """Return a hash as bytes; vLLM's own are bytes, or numbers where it cuts them to 64 bits."""
    if type(value) is int and -(1 << 63) <= value < 1 << 64:
        return (value % (1 << 64)).to_bytes(_HASH_BYTES, "little")
    return octets(value, "hash", MAX_HASH_BYTES)


def _tier(fields: Fields) -> Tier | None:
    """Return where the blocks are; None for a medium of which we know nothing."""
    medium = fields.get("medium")
    if medium is not None and not isinstance(medium, str):
        raise MalformedMessage("medium", "its name")
    if fields.get("locality") == _REMOTE:
        return "peer"
    return _TIERS.get(medium)
