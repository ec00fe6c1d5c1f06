"""The transport of torch.distributed: gloo between hosts' memory, NCCL between GPUs.

Two-sided. The reader visits the owner (see `visits`), both make a process group of two for the
visit, and the owner sends what the reader asks for in parts, which the reader unpacks. The groups
are made directly: torch's global group, which an engine's tensor parallelism uses, is not touched.

- Only the reader's own thread writes into the destination, between two looks at the job's `stop`.
  When it calls `finish` it has left: a cancelled read is a fence, whatever the peer still sends.
- A job that ends early ends its process group too: gloo's and NCCL's are of no use afterwards. The
  next job makes another one (about 5 ms on one host).
- Where one side is a GPU and the other is not, or both are the same GPU, or NCCL is missing, gloo
  carries the bytes, staged in host memory.
- Authenticated is the visit, and who may connect the group is told there. The group's own sockets
  are neither authenticated nor encrypted: for networks that are trusted.

gloo was tried with torch 2.13 on Linux. The logic around NCCL is tested with a double; nothing here
was run on a GPU.
"""

import socket
from dataclasses import dataclass

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.regions import LocalRegion, RegionInfo, RegionKind
from stafette.kvtransfer.transport import (
    Capabilities,
    Link,
    PeerControl,
    PeerInfo,
    Surroundings,
    Transport,
)
from stafette.kvtransfer.transports.two_sided.media import Media, gpu_of
from stafette.kvtransfer.transports.two_sided.puller import Puller
from stafette.kvtransfer.transports.two_sided.sender import MAX_PART_BYTES, Sender
from stafette.kvtransfer.transports.visits.lanes import LaneLink, Links
from stafette.kvtransfer.transports.visits.reception import Reception, Visitor

_MIN_PART_BYTES = 4 << 10
_KINDS: frozenset[RegionKind] = frozenset({"host", "cuda"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchDistConfig:
    lanes: int = 2  # jobs side by side with one peer; each has a thread and a process group
    part_bytes: int = 4 << 20  # sent at a time; two such buffers a lane on each side
    join_timeout_s: float = 5.0  # for a peer to make its end of a process group
    close_timeout_s: float = 5.0
    max_visits: int = 256  # of all peers together, each with a thread

    def __post_init__(self) -> None:
        for name in ("lanes", "max_visits"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"torch_dist.{name}", getattr(self, name), "must be at least 1")
        for name in ("join_timeout_s", "close_timeout_s"):
            if not getattr(self, name) > 0:
                raise InvalidValue(f"torch_dist.{name}", getattr(self, name), "must be above 0")
        if not _MIN_PART_BYTES <= self.part_bytes <= MAX_PART_BYTES:
            remedy = f"must be in {_MIN_PART_BYTES}..{MAX_PART_BYTES}"
            raise InvalidValue("torch_dist.part_bytes", self.part_bytes, remedy)


class TorchDistTransport(Transport):
    name = "torch_dist"
    # Measured between two processes on one host, with gloo.
    capabilities = Capabilities(_KINDS, _KINDS, same_host=False, setup_us=400.0, gb_per_s=1.5)

    def __init__(
        self,
        surroundings: Surroundings,
        config: TorchDistConfig = TorchDistConfig(),
        media: Media | None = None,
    ) -> None:
        self._config = config
        self._media = Media() if media is None else media
        self._links = Links()
        gate, most = surroundings.gate, config.max_visits
        self._reception = Reception(self.name, gate, self._make_sender, most)

    def endpoint(self) -> object:
        return self._media.names()

    def attach(self, region: LocalRegion) -> object:
        return gpu_of(region)

    def detach(self, region: LocalRegion) -> None:
        """Jobs keep the memory that they read alive; their claims tell them that it is gone."""

    def unreachable(self, peer: PeerInfo, remote: RegionInfo, local: LocalRegion) -> str:
        if not isinstance(peer.endpoints.get(self.name), list):
            return "the peer does not offer it"
        for kind in (remote.kind, local.info.kind):
            if kind not in _KINDS:
                return f"it does not move memory of kind {kind}"
        return ""

    def connect(self, peer: PeerInfo, control: PeerControl) -> Link:
        def make_worker() -> Puller:
            return Puller(peer, control, self._media, self._config)

        return self._links.add(LaneLink(peer.name, make_worker, self._config.lanes))

    def accept(self, connection: socket.socket, peer: PeerInfo) -> None:
        self._reception.receive(connection, peer)

    def close(self) -> None:
        self._links.close()
        self._reception.close(self._config.close_timeout_s)

    def _make_sender(self, visitor: Visitor) -> Sender:
        return Sender(visitor, self._media)
