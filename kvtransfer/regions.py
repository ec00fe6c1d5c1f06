"""Regions: memory that an agent has registered, and what its peers are told of it."""

import ctypes
from dataclasses import dataclass, field
from typing import Literal, get_args

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.extents import MAX_NAME_BYTES
from stafette.kvtransfer.memory import Bytes, SharedMemory
from stafette.kvtransfer.strict import exact, text, whole

RegionKind = Literal["host", "cuda", "file"]

_KINDS = frozenset(get_args(RegionKind))
_U63_END = 1 << 63


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """What peers know of a region. `block_bytes` is the grain of leases and generations."""

    name: str
    kind: RegionKind
    nbytes: int
    block_bytes: int
    generation: int  # counts the registrations under this name: another one is other memory
    device: int = 0  # of cuda memory
    layout: object = None  # what the blocks hold, as layout.BlockLayout packs it
    hints: dict[str, object] = field(default_factory=dict)  # transport name -> what it needs

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_NAME_BYTES:
            raise InvalidValue("region name", self.name, f"must have 1..{MAX_NAME_BYTES} bytes")
        if self.nbytes < 1:
            raise InvalidValue("nbytes", self.nbytes, "a region has at least 1 byte")
        if not 1 <= self.block_bytes <= self.nbytes:
            remedy = f"must be in 1..{self.nbytes}, the size of region {self.name!r}"
            raise InvalidValue("block_bytes", self.block_bytes, remedy)

    @property
    def num_blocks(self) -> int:
        return -(-self.nbytes // self.block_bytes)

    def pack(self) -> list[object]:
        return [
            self.name,
            self.kind,
            self.nbytes,
            self.block_bytes,
            self.generation,
            self.device,
            self.layout,
            self.hints,
        ]

    @classmethod
    def read(cls, value: object) -> "RegionInfo":
        match value:
            case [name, kind, nbytes, block_bytes, generation, device, layout, hints]:
                if kind not in _KINDS:
                    raise MalformedMessage("region kind", " | ".join(sorted(_KINDS)))
                return cls(
                    text(name, "region name", MAX_NAME_BYTES),
                    kind,  # type: ignore[arg-type]
                    whole(nbytes, "nbytes", _U63_END),
                    whole(block_bytes, "block_bytes", _U63_END),
                    whole(generation, "generation", _U63_END),
                    whole(device, "device", 1 << 16),
                    layout,
                    exact(hints, "hints", dict),
                )
        raise MalformedMessage("region", "its eight fields")


@dataclass(frozen=True, slots=True, eq=False)
class LocalRegion:
    """Memory of this process under a name. Whoever registered it keeps the memory alive."""

    info: RegionInfo
    memory: Bytes | None  # host memory; None for the other kinds
    address: int  # of the first byte; of a file, the offset where the region begins
    shared: SharedMemory | None = None  # host memory that peers on this host can map
    fd: int = -1  # of a file
    owner: object = None  # keeps device memory alive
    exported: object = None  # of device memory of another process: what that one tells of it
    # 1 from when it is to be deregistered: nothing begins to write into it then. Native code looks.
    withdrawn: ctypes.c_int32 = field(default_factory=ctypes.c_int32)

    @property
    def name(self) -> str:
        return self.info.name
