"""What can go wrong with KV blocks and their events, and what the caller can do about it.

KvTransferError        every error of this package
├── InvalidValue       an argument is wrong: the caller's bug or configuration
├── MalformedMessage   a peer's bytes break the format: drop them, count them, ask for a snapshot
├── DirectoryError     the directory of peers did not do it
│   ├── DirectoryUnavailable   it does not answer: go on with what is known; it makes up for it
│   ├── NameTaken              somebody else lives under that name: stop, or begin a newer epoch
│   └── PeerNotFound           nobody published that name in time
└── TransferError      no bytes that can be used arrived: compute them, or ask somebody else
    ├── PeerLost               the peer's process or the way to it is gone: use another peer
    ├── TransferTimedOut       nobody knows why: use another peer, and keep off this one for a while
    ├── TransferCancelled      the caller wanted it so
    ├── StaleEpoch             the peer is another life of that name: ask the directory again
    ├── LeaseEnded             expired, released or never granted: the blocks may be others now
    ├── StaleBlocks            they were overwritten while they were read, or before
    ├── AccessDenied           outside of the region or the lease: the caller's bug
    ├── ChecksumMismatch       bytes changed on the way: read them again
    ├── AuthFailed             another cluster's token
    ├── Incompatible           the peers' versions or layouts do not fit: a deployment's mistake
    └── TransportUnavailable   this transport does not reach that peer: use another
"""

_SHOWN_CHARS = 120


class KvTransferError(Exception):
    """The base of this package's errors."""


class InvalidValue(KvTransferError, ValueError):
    """Names the argument that is wrong, the value it has, and what to do."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(field, value, remedy)  # all arguments: they must survive pickling
        self.field = field
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.field} = {repr(self.value)[:_SHOWN_CHARS]}: {self.remedy}"


class MalformedMessage(KvTransferError, ValueError):
    """Says where in the message, and what was expected there."""

    def __init__(self, where: str, expected: str) -> None:
        super().__init__(where, expected)
        self.where = where
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}"


class DirectoryError(KvTransferError):
    """The directory of peers did not do what it was asked."""


class DirectoryUnavailable(DirectoryError):
    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(directory, reason)
        self.directory = directory
        self.reason = reason

    def __str__(self) -> str:
        return f"the directory in {self.directory} is not available: {self.reason}"


class NameTaken(DirectoryError):
    def __init__(self, name: str, epoch: int, holder_epoch: int) -> None:
        super().__init__(name, epoch, holder_epoch)
        self.name = name
        self.epoch = epoch
        self.holder_epoch = holder_epoch

    def __str__(self) -> str:
        return (
            f"{self.name} in epoch {self.epoch} cannot be published: epoch {self.holder_epoch} "
            "lives under that name; give each worker its own name and each life a newer epoch"
        )


class PeerNotFound(DirectoryError):
    def __init__(self, name: str, timeout_s: float) -> None:
        super().__init__(name, timeout_s)
        self.name = name
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"no peer {self.name} was published within {self.timeout_s:g} s"


class TransferError(KvTransferError):
    """A transfer, or the talk about it, failed. Nothing that was read may be used."""


class PeerLost(TransferError):
    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer = peer
        self.reason = reason

    def __str__(self) -> str:
        return f"peer {self.peer} is lost: {self.reason}"


class TransferTimedOut(TransferError):
    def __init__(self, peer: str, doing: str, timeout_s: float) -> None:
        super().__init__(peer, doing, timeout_s)
        self.peer = peer
        self.doing = doing
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"{self.doing} with peer {self.peer} took longer than {self.timeout_s:g} s"


class TransferCancelled(TransferError):
    def __init__(self, peer: str) -> None:
        super().__init__(peer)
        self.peer = peer

    def __str__(self) -> str:
        return f"the transfer with peer {self.peer} was cancelled"


class StaleEpoch(TransferError):
    def __init__(self, peer: str, expected: int, found: int) -> None:
        super().__init__(peer, expected, found)
        self.peer = peer
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return f"peer {self.peer} is in epoch {self.found}, not {self.expected}: it has restarted"


class LeaseEnded(TransferError):
    def __init__(self, lease_id: int, reason: str) -> None:
        super().__init__(lease_id, reason)
        self.lease_id = lease_id
        self.reason = reason

    def __str__(self) -> str:
        return f"lease {self.lease_id:#x} is over: {self.reason}"


class StaleBlocks(TransferError):
    def __init__(self, peer: str, region: str, blocks: tuple[int, ...]) -> None:
        super().__init__(peer, region, blocks)
        self.peer = peer
        self.region = region
        self.blocks = blocks

    def __str__(self) -> str:
        shown = str(list(self.blocks))[:_SHOWN_CHARS]
        return f"blocks {shown} of {self.peer}/{self.region} were overwritten"


class AccessDenied(TransferError):
    def __init__(self, peer: str, asked: str, reason: str) -> None:
        super().__init__(peer, asked, reason)
        self.peer = peer
        self.asked = asked
        self.reason = reason

    def __str__(self) -> str:
        return f"peer {self.peer} refuses {self.asked}: {self.reason}"


class ChecksumMismatch(TransferError):
    def __init__(self, peer: str, region: str) -> None:
        super().__init__(peer, region)
        self.peer = peer
        self.region = region

    def __str__(self) -> str:
        return f"bytes of {self.peer}/{self.region} changed on the way"


class AuthFailed(TransferError):
    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer = peer
        self.reason = reason

    def __str__(self) -> str:
        return f"peer {self.peer} did not prove that it knows the cluster's token: {self.reason}"


class Incompatible(TransferError):
    def __init__(self, peer: str, field: str, ours: str, theirs: str) -> None:
        super().__init__(peer, field, ours, theirs)
        self.peer = peer
        self.field = field
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        return f"peer {self.peer} has {self.field} {self.theirs}, we have {self.ours}"


class TransportUnavailable(TransferError):
    def __init__(self, transport: str, peer: str, reason: str) -> None:
        super().__init__(transport, peer, reason)
        self.transport = transport
        self.peer = peer
        self.reason = reason

    def __str__(self) -> str:
        return f"transport {self.transport} does not reach peer {self.peer}: {self.reason}"
