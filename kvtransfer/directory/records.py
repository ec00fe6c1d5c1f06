"""What a directory keeps of each peer, its form on the wire, and who may replace whom.

The wire form is msgpack: [1, epoch, metadata, {label: value}].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.strict import pack, unpack

MAX_NAME_BYTES = 128
MAX_METADATA_BYTES = 1 << 20  # an etcd takes requests of 1.5 MiB
MAX_LABELS = 32
MAX_LABEL_BYTES = 256  # of its name, and of its value
_MAX_RECORD_BYTES = MAX_METADATA_BYTES + 2 * MAX_LABELS * (MAX_LABEL_BYTES + 3) + 32
_U64_END = 1 << 64


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """One life of a peer. Of two lives under one name, that of the newer epoch stays."""

    epoch: int
    metadata: bytes = field(repr=False)  # with which others connect to its transfer agent
    labels: Mapping[str, str] = field(default_factory=dict)  # nobody changes them

    def __post_init__(self) -> None:
        if type(self.epoch) is not int or not 0 <= self.epoch < _U64_END:
            raise InvalidValue("epoch", self.epoch, "must be a whole number in 0..2**64 - 1")
        if not isinstance(self.metadata, bytes) or not 0 < len(self.metadata) <= MAX_METADATA_BYTES:
            raise InvalidValue("metadata", self.metadata, f"must be 1..{MAX_METADATA_BYTES} bytes")
        if len(self.labels) > MAX_LABELS:
            raise InvalidValue("labels", self.labels, f"must be at most {MAX_LABELS}")
        for name, value in self.labels.items():
            _check_text("label", name, MAX_LABEL_BYTES)
            _check_text(f"labels[{name!r}]", value, MAX_LABEL_BYTES)


def check_name(name: str) -> None:
    """With a slash, a name could be taken for one of another directory, below this one."""
    _check_text("name", name, MAX_NAME_BYTES)
    if not name or "/" in name:
        raise InvalidValue("name", name, "must not be empty, and have no slash")


def may_replace(epoch: int, held_epoch: int, is_own: bool) -> bool:
    """Tell whether a life may take a name that another one, or it itself, holds."""
    return epoch > held_epoch or (is_own and epoch == held_epoch)


def encode(record: PeerRecord) -> bytes:
    return pack([1, record.epoch, record.metadata, dict(record.labels)])


def decode(data: bytes) -> PeerRecord:
    """Read a record; MalformedMessage for what is not one."""
    match unpack(data, _MAX_RECORD_BYTES):
        case [1, int(epoch), bytes(metadata), dict() as labels]:
            try:
                return PeerRecord(epoch, metadata, labels)
            except InvalidValue as error:
                raise MalformedMessage(error.field, error.remedy) from None
    raise MalformedMessage("record", "[1, epoch, metadata, {label: value}]")


def decode_name(data: bytes) -> str:
    """Read a name from outside; MalformedMessage for what is none."""
    try:
        name = data.decode()
        check_name(name)
    except ValueError:  # InvalidValue is one as well
        raise MalformedMessage("name", "a printable one, without slash") from None
    return name


def _check_text(where: str, value: object, max_bytes: int) -> None:
    # What is printable has no lone surrogate, which could not be encoded.
    if not isinstance(value, str) or not value.isprintable() or len(value.encode()) > max_bytes:
        raise InvalidValue(where, value, f"must be printable text of at most {max_bytes} bytes")
