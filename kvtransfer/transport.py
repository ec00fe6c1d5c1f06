"""The contract of a transport plug-in: it moves the bytes of one job, the agent does the rest.

Every job is a READ: the transport copies ranges of a peer's region into a region of this process. A
WRITE is a READ by the other side. So nobody but its owner ever writes into a pool.
"""

import ctypes
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import TransferError
from stafette.kvtransfer.extents import Extents, Uint64s
from stafette.kvtransfer.ledger import Ledger
from stafette.kvtransfer.regions import LocalRegion, RegionInfo, RegionKind


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the agent asks before it chooses."""

    reads_from: frozenset[RegionKind]  # kinds of the peer's region
    reads_into: frozenset[RegionKind]  # kinds of ours
    same_host: bool  # reaches only processes on this host
    setup_us: float  # expected time of a job of no bytes, before anything was measured
    gb_per_s: float  # expected rate, before anything was measured
    inline_bytes: int = 0  # a smaller job is done inside `start`: quicker than waking a thread


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """One life of a peer, as its metadata tells it."""

    name: str
    epoch: int
    host_id: str  # equal: the same kernel, and memory can be shared
    endpoints: Mapping[str, object] = field(default_factory=dict)  # transport name -> its own


@dataclass(frozen=True, slots=True)
class Grant:
    """What the owner says that a lease covers. `slot` is its place in the owner's ledger."""

    lease_id: int
    epoch: int
    slot: int
    region: RegionInfo
    blocks: npt.NDArray[np.int64]  # ascending; what may be touched
    generations: Uint64s  # of those blocks when the lease began


class PeerControl(Protocol):
    """The authenticated connection to one peer, shared by everything that talks with it."""

    def call(self, operation: str, payload: object, timeout_s: float) -> object:
        """Return the peer's answer; its typed error is raised here as if it were ours."""

    def call_fds(
        self, operation: str, payload: object, timeout_s: float
    ) -> tuple[object, list[int]]:
        """Like `call`, over the Unix socket: the answer comes with file descriptors, now ours."""

    def dial(self, purpose: str, timeout_s: float) -> socket.socket:
        """Return a new, blocking, authenticated TCP connection for a transport's own use."""


class Claim(Protocol):
    """The owner's promise, while it is held, that a lease's blocks stay as they are."""

    region: LocalRegion

    def check(self) -> None:
        """Raise StaleBlocks, LeaseEnded or StaleEpoch when the promise could not be kept."""

    def words(self) -> tuple[int, ...] | None:
        """Return what native code needs to check it by itself, until the lease ends; None: nothing
        that would hold so long. What the words point to lives as long as the claim."""


class Gate(Protocol):
    """The owner's side of every access: nobody reads past it."""

    def claim(self, peer: str, lease_id: int, extents: Extents) -> AbstractContextManager[Claim]:
        """Check region, bounds, epoch and lease; raise AccessDenied or LeaseEnded."""

    def when_ending(self, claim: Claim, call: Callable[[], None]) -> None:
        """Call before anybody learns that the claim's lease has ended; at once when it has."""


class ReadJob(ABC):
    """What a link has to copy; it calls `finish` exactly once, when it writes no more."""

    local: LocalRegion
    into: Extents  # of `local`; pairs with `source`, neighbours merged
    remote: RegionInfo
    source: Extents  # of `remote`
    grant: Grant
    deadline: float  # of time.monotonic
    verify: bool  # compare checksums of what was sent and what arrived
    stop: ctypes.c_int32  # becomes 1 when the job should end; native loops watch its address

    @abstractmethod
    def advance(self, nbytes: int) -> None:
        """Count bytes that have arrived."""

    @abstractmethod
    def finish(self, error: TransferError | None = None) -> None:
        """The last word: from now on the link touches none of the destination's bytes."""


OneRange = tuple[int, int, int]  # where it begins here, where it begins there, its length


class Link(ABC):
    """The way to one peer. No method blocks; jobs run side by side in threads of the link."""

    def read_now(self, one: OneRange, grant: Grant, local: LocalRegion) -> bool:
        """Read a little at once, checked as a job is: True when it is there.

        False whatever is in the way, for instance that it would wait: `start` finds out. No other
        thread of this process runs meanwhile, so nobody sees the destination half written.
        """
        return False

    @abstractmethod
    def start(self, job: ReadJob) -> None:
        """Begin; whatever goes wrong reaches `job.finish`."""

    @abstractmethod
    def interrupt(self, job: ReadJob) -> None:
        """`job.stop` was set: end it soon, by `finish`. The job may be over already."""

    def lend(self, job: ReadJob, until: float) -> None:
        """Use the thread of whoever waits for the job, until then at the latest; or return at once.

        `until` is of time.monotonic. What ends the job must not wait for this thread.
        """
        return

    @abstractmethod
    def close(self) -> None:
        """End all jobs with PeerLost, and every thread. Safe to call twice."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the agent lends to its transports."""

    name: str
    epoch: int
    gate: Gate
    ledger: Ledger  # the shm transport shows it to peers


# May return (answer, [fds]) for call_fds, or a Handover.
Operation = Callable[[PeerInfo, object], object]


@dataclass(frozen=True, slots=True)
class Handover:
    """An answer with descriptors of its own: they are closed as soon as it was sent. So nobody who
    closes files meanwhile makes it send another file that got the number."""

    answer: object
    fds: Sequence[int]


class Transport(ABC):
    """One agent's end. Owner's and reader's side live here; a peer uses either or both."""

    name: str
    capabilities: Capabilities

    @abstractmethod
    def endpoint(self) -> object:
        """Return what peers need to find us, for msgpack; None when we only read."""

    @abstractmethod
    def attach(self, region: LocalRegion) -> object:
        """Prepare a region; return what peers must know of it (for RegionInfo.hints), or None."""

    @abstractmethod
    def detach(self, region: LocalRegion) -> None:
        """Forget a region."""

    @abstractmethod
    def unreachable(self, peer: PeerInfo, remote: RegionInfo, local: LocalRegion) -> str:
        """Return why a region of the peer cannot be read into ours this way; empty: it can."""

    @abstractmethod
    def connect(self, peer: PeerInfo, control: PeerControl) -> Link:
        """Return the link. It may connect lazily, and must not block."""

    def operations(self) -> Mapping[str, Operation]:
        """Return what peers may ask of this transport through `PeerControl.call`."""
        return {}

    def accept(self, connection: socket.socket, peer: PeerInfo) -> None:
        """Take over a connection that a peer dialled for this transport; runs in its thread."""
        connection.close()

    @abstractmethod
    def close(self) -> None:
        """End everything, on both sides. Safe to call twice."""
