"""An agent's metadata: what its peers need to know before they talk to it."""

from dataclasses import dataclass
from hashlib import blake2b

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.regions import RegionInfo
from stafette.kvtransfer.strict import each, exact, pack, text, unpack, whole
from stafette.kvtransfer.transport import PeerInfo

VERSION = 1  # of the protocol: peers of another one are refused
MAX_BYTES = 1 << 20
MAX_PEER_NAME_BYTES = 128
_U64_END = 1 << 64


@dataclass(frozen=True, slots=True)
class Metadata:
    peer: PeerInfo
    regions: tuple[RegionInfo, ...]  # as of now: a lease tells what is true when it is opened
    digest: bytes = b""  # of what must be equal on both sides


def compatibility_digest(what: str) -> bytes:
    """Return what peers compare first: model, dtype and the like, as the deployment words it."""
    return blake2b(f"{VERSION}|{what}".encode(), digest_size=16).digest()


def encode(metadata: Metadata) -> bytes:
    peer = metadata.peer
    head = [VERSION, metadata.digest, peer.name, peer.epoch, peer.host_id, dict(peer.endpoints)]
    return pack([*head, [region.pack() for region in metadata.regions]])


def decode(data: bytes) -> Metadata:
    match unpack(data, MAX_BYTES):
        case [version, bytes(digest), name, epoch, host_id, endpoints, regions]:
            if version != VERSION:
                raise MalformedMessage("metadata version", f"{VERSION}, not {version!r}")
            peer = PeerInfo(
                text(name, "peer name", MAX_PEER_NAME_BYTES),
                whole(epoch, "epoch", _U64_END),
                text(host_id, "host id", MAX_PEER_NAME_BYTES),
                exact(endpoints, "endpoints", dict),
            )
            return Metadata(peer, each(regions, "regions", RegionInfo.read), digest)
    raise MalformedMessage("metadata", "[version, digest, name, epoch, host, endpoints, regions]")
