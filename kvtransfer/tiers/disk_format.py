"""The form of a disk tier: a file `index` of small records, and a file `blocks` of the blocks.

The index is a head and one record of 64 bytes for each slot, so that a restart reads it in one go.
A record names the block in its slot and the checksum of its bytes. It counts only when its own
check fits and it has the head's epoch: a new epoch empties the whole tier.
"""

import secrets
import struct
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from xxhash import xxh3_64_intdigest

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.kvtransfer.memory import Bytes

MAGIC = b"STFLDISK"
VERSION = 1
HEAD_BYTES = 4096
RECORD_BYTES = 64  # no record lies in two sectors
BLANK = bytes(RECORD_BYTES)

_HEAD = struct.Struct("<8sIIQQ32s")  # magic, version, record bytes, block bytes, epoch, digest
_CHECK = struct.Struct("<Q")
_RECORD_MAGIC = 0x314B4C42  # "BLK1"
_BODY = np.dtype(
    [
        ("magic", "<u4"),
        ("epoch", "<u4"),  # the low half of the head's
        ("length", "<u4"),
        ("check", "<u4"),  # of all the rest
        ("sequence", "<u8"),  # of the write: of two records of a block, the later counts
        ("checksum", "<u8"),  # XXH3 of the block's bytes
        ("hash", f"V{HASH_BYTES}"),
        ("parent", f"V{HASH_BYTES}"),
    ]
)
_PACK = struct.Struct(f"<IIIIQQ{HASH_BYTES}s{HASH_BYTES}s")
_U32 = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Head:
    version: int
    block_bytes: int
    epoch: int
    digest: bytes  # of what makes blocks of different models differ


@dataclass(frozen=True, slots=True)
class Record:
    """What lies in a slot."""

    key: bytes
    parent: bytes
    checksum: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What an index tells: records by slot, and how many of them are damaged."""

    records: dict[int, Record]
    damaged: int


def checksum(block: Bytes) -> int:
    return xxh3_64_intdigest(block.data)


def new_head(block_bytes: int, compatibility: str) -> Head:
    digest = blake2b(compatibility.encode(), digest_size=32, person=b"stafette.tiers").digest()
    return Head(VERSION, block_bytes, secrets.randbits(64), digest)


def renewed(head: Head) -> Head:
    """Return a head under which no record counts that was written before."""
    return replace(head, epoch=secrets.randbits(64))


def difference(ours: Head, found: Head) -> tuple[str, str, str] | None:
    """Return (field, our value, its value) when blocks under that head are of no use to us."""
    for field in ("version", "block_bytes"):
        if getattr(ours, field) != getattr(found, field):
            return field, str(getattr(ours, field)), str(getattr(found, field))
    if ours.digest != found.digest:
        return "model or layout (digest)", ours.digest.hex()[:16], found.digest.hex()[:16]
    return None


def pack_head(head: Head) -> bytes:
    body = _HEAD.pack(MAGIC, head.version, RECORD_BYTES, head.block_bytes, head.epoch, head.digest)
    return (body + _CHECK.pack(xxh3_64_intdigest(body))).ljust(HEAD_BYTES, b"\0")


def is_ours(data: bytes) -> bool:
    """Whether a file that begins so was made by some version of this module."""
    return data.startswith(MAGIC)


def read_head(data: bytes) -> Head | None:
    """Return the head of an index of ours, or None when it is damaged."""
    if len(data) < HEAD_BYTES:
        return None
    body = data[: _HEAD.size]
    (check,) = _CHECK.unpack_from(data, _HEAD.size)
    _, version, record_bytes, block_bytes, epoch, digest = _HEAD.unpack(body)
    if check != xxh3_64_intdigest(body) or record_bytes != RECORD_BYTES:
        return None
    return Head(version, block_bytes, epoch, digest)


def pack_record(record: Record, head: Head) -> bytes:
    magic, epoch, length = _RECORD_MAGIC, head.epoch & _U32, head.block_bytes
    rest = (record.sequence, record.checksum, record.key, record.parent)
    bare = _PACK.pack(magic, epoch, length, 0, *rest)
    return _PACK.pack(magic, epoch, length, _check(bare, head.epoch), *rest)


def scan(data: bytes, head: Head) -> Scan:
    """Return what the records of an index say, those of earlier epochs left out."""
    table = np.frombuffer(data, _BODY, len(data) // RECORD_BYTES)
    current = (table["magic"] == _RECORD_MAGIC) & (table["epoch"] == head.epoch & _U32)
    records, damaged = {}, 0
    for slot in np.flatnonzero(current).tolist():
        record = _read_record(data[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES], head)
        if record is None:
            damaged += 1
        else:
            records[slot] = record
    return Scan(records, damaged)


def _read_record(data: bytes, head: Head) -> Record | None:
    magic, epoch, length, check, sequence, block_checksum, key, parent = _PACK.unpack(data)
    bare = _PACK.pack(magic, epoch, length, 0, sequence, block_checksum, key, parent)
    if check != _check(bare, head.epoch) or length != head.block_bytes:
        return None
    return Record(key, parent, block_checksum, sequence)


def _check(bare: bytes, epoch: int) -> int:
    return xxh3_64_intdigest(bare, epoch) & _U32
