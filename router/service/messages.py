"""What clients send, one class for each path; `reading` makes them of plain values."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stafette.kvtransfer.blocks import HASH_BYTES, Extras, TokenIds
from stafette.kvtransfer.event_stream.dialects import DialectName
from stafette.router.errors import InvalidValue
from stafette.router.index import CacheSpec
from stafette.router.request import Role, WorkerSpec
from stafette.router.service.leases import check_ttl

_SCHEMES = ("tcp://", "ipc://")
_TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSource:
    """Where a worker publishes its KV events."""

    address: str
    replay_address: str | None = None
    dialect: DialectName = "stafette"  # vllm: stock vLLM and SGLang

    def __post_init__(self) -> None:
        for name in ("address", "replay_address"):
            value = getattr(self, name)
            if value is not None and not value.startswith(_SCHEMES):
                remedy = f"must begin with {' or '.join(_SCHEMES)}"
                raise InvalidValue(f"events.{name}", value, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    worker: str
    block_size: int
    model: str = ""
    fingerprint: bytes | None = None  # of its hasher; None: other hashes, its events have tokens
    role: Role = "both"
    worker_class: str = ""
    loras: frozenset[str] | None = None
    taints: frozenset[str] = frozenset()
    host: str = ""
    rack: str = ""
    total_blocks: int = 0
    max_requests: int = 0
    block_bytes: int = 2 << 20
    epoch: int = 0  # of its life: an older one is refused
    events: EventSource | None = None
    pushes_events: bool = False  # it sends them here; neither: they are guessed from decisions
    ttl_s: float | None = None  # without a word it is not healthy

    def __post_init__(self) -> None:
        check_name("worker", self.worker)
        check_ttl(self.ttl_s)
        if self.events is not None and self.pushes_events:
            raise InvalidValue("pushes_events", True, "must be false where events have an address")

    def spec(self) -> WorkerSpec:
        cache = CacheSpec(
            target=self.worker,
            block_size=self.block_size,
            model=self.model,
            fingerprint=self.fingerprint,
            events=self.events is not None or self.pushes_events,
            capacity_blocks=self.total_blocks or None,
        )
        return WorkerSpec(
            cache=cache,
            role=self.role,
            worker_class=self.worker_class,
            loras=self.loras,
            taints=self.taints,
            host=self.host,
            rack=self.rack,
            total_blocks=self.total_blocks,
            max_requests=self.max_requests,
            block_bytes=self.block_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unregister:
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetState:
    worker: str
    healthy: bool = True
    draining: bool = False
    role: Role | None = None  # None: as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLoad:
    worker: str
    queued_tokens: int
    running: int
    used_blocks: int
    at: float | None = None  # by the worker's clock, which must not go back
    age_s: float = 0.0  # how long ago that was
    epoch: int | None = None

    def __post_init__(self) -> None:
        for name in ("queued_tokens", "running", "used_blocks", "age_s"):
            if getattr(self, name) < 0:
                raise InvalidValue(name, getattr(self, name), "must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    wall_ms: float
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    decode_sequences: int = 0
    decode_kv_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSteps:
    worker: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushEvents:
    worker: str
    seq: int  # gapless within an epoch, from 1
    timestamp: float
    events: object  # as in stafette's event batches
    epoch: int = 0
    snapshot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    request_id: str
    token_ids: object = None  # a list; in msgpack also bytes, 4 a token, little-endian
    block_hashes: object = None  # a list, or one behind the other: bytes, in JSON hex
    prompt_tokens: int | None = None  # needed with block_hashes
    block_size: int | None = None  # of the hashes, to be checked
    fingerprint: bytes | None = None  # likewise
    model: str = ""
    lora: str = ""
    salt: str = ""
    tenant: str = ""
    session: str = ""
    priority: int = 0
    deadline_s: float | None = None
    tolerations: frozenset[str] = frozenset()
    pinned: str | None = None
    expected_output_tokens: int | None = None
    reserve: bool = True  # False: only tell
    client: str = ""  # who renews the lease; "": the reservation itself
    ttl_s: float | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        check_name("request_id", self.request_id)
        check_ttl(self.ttl_s)
        if (self.token_ids is None) == (self.block_hashes is None):
            remedy = "give either token_ids or block_hashes"
            raise InvalidValue("token_ids", _count(self.token_ids), remedy)

    @property
    def extras(self) -> Extras:
        return Extras(lora=self.lora, salt=self.salt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    request_id: str
    client: str = ""
    ttl_s: float | None = None

    def __post_init__(self) -> None:
        check_ttl(self.ttl_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    request_id: str
    cached_tokens: int | None = None
    ttft_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("cached_tokens", "ttft_ms"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InvalidValue(name, value, "must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    request_id: str
    output_tokens: int

    def __post_init__(self) -> None:
        if self.output_tokens < 0:
            raise InvalidValue("output_tokens", self.output_tokens, "must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    request_id: str
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.output_tokens is not None and self.output_tokens < 0:
            raise InvalidValue("output_tokens", self.output_tokens, "must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    client: str


def check_name(field: str, value: str) -> None:
    if not value or len(value.encode()) > 256:
        raise InvalidValue(field, value, "must be a text of 1..256 bytes")


def tokens_of(value: object) -> TokenIds:
    """Return token ids; the hasher checks that they are numbers."""
    if isinstance(value, list):
        return value
    if isinstance(value, bytes) and len(value) % _TOKEN_BYTES == 0:
        return np.frombuffer(value, "<u4")
    remedy = "must be a list of whole numbers, or in msgpack bytes, 4 for each token"
    raise InvalidValue("token_ids", value, remedy)


def chain_of(value: object) -> bytes:
    """Return block hashes as one run of bytes."""
    parts: list[Any] = value if isinstance(value, list) else [value]
    try:
        chain = b"".join([bytes.fromhex(one) if type(one) is str else one for one in parts])
    except (TypeError, ValueError):
        chain = b"?"
    if len(chain) % HASH_BYTES:
        remedy = f"must be hashes of {HASH_BYTES} bytes each, in JSON as hex digits"
        raise InvalidValue("block_hashes", value, remedy)
    return chain


def _count(value: object) -> object:
    return value if value is None else "..."
