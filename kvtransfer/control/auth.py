"""Proofs that both ends know the cluster's token, which itself never travels.

A proof is an HMAC-SHA256 over everything that was said on this connection so far: both greetings
with their nonces, both names and epochs, the purpose, the binding to the TLS connection, and the
prover's role. So it is worth nothing on another connection, in another role, or after any change.
"""

import hmac
import secrets
import struct
from dataclasses import dataclass

from stafette.kvtransfer.errors import Incompatible, MalformedMessage
from stafette.kvtransfer.strict import exact, octets, pack, text, unpack, whole
from stafette.kvtransfer.transport import PeerInfo

VERSION = 1
MAX_NAME_BYTES = 128
MAX_PURPOSE_BYTES = 64
MAX_METADATA_BYTES = 1 << 20
MAX_IDENTITY_BYTES = MAX_METADATA_BYTES + (64 << 10)
PROOF_BYTES = 32
_MAGIC = b"stafkvct"
_NONCE_BYTES = 32
# Magic, version, digest behind its length, nonce. The one thing that all versions have in common.
_GREETING = struct.Struct(f">8sH65p{_NONCE_BYTES}s")
GREETING_BYTES = _GREETING.size
_U64_END = 1 << 64


@dataclass(frozen=True, slots=True)
class Identity:
    """One end of a connection. The metadata is the agent's own affair."""

    peer: PeerInfo
    metadata: bytes = b""

    def pack(self) -> bytes:
        peer = self.peer
        return pack([peer.name, peer.epoch, peer.host_id, dict(peer.endpoints), self.metadata])

    @classmethod
    def read(cls, data: bytes) -> "Identity":
        match unpack(data, MAX_IDENTITY_BYTES):
            case [name, epoch, host_id, endpoints, bytes(metadata)]:
                peer = PeerInfo(
                    text(name, "peer name", MAX_NAME_BYTES),
                    whole(epoch, "epoch", _U64_END),
                    text(host_id, "host id", MAX_NAME_BYTES),
                    exact(endpoints, "endpoints", dict),
                )
                return cls(peer, metadata)
        raise MalformedMessage("identity", "[name, epoch, host, endpoints, metadata]")


@dataclass(frozen=True, slots=True)
class Life:
    """Whom somebody claims to be, or wants to talk with."""

    name: str
    epoch: int

    @classmethod
    def of(cls, peer: PeerInfo) -> "Life":
        return cls(peer.name, peer.epoch)

    def pack(self) -> list[object]:
        return [self.name, self.epoch]

    @classmethod
    def read(cls, value: object) -> "Life":
        match value:
            case [name, epoch]:
                return cls(text(name, "name", MAX_NAME_BYTES), whole(epoch, "epoch", _U64_END))
        raise MalformedMessage("life", "[name, epoch]")


def greeting(digest: bytes) -> bytes:
    return _GREETING.pack(_MAGIC, VERSION, digest, secrets.token_bytes(_NONCE_BYTES))


def check_magic(theirs: bytes) -> None:
    if not theirs.startswith(_MAGIC):
        raise MalformedMessage("greeting", "the magic bytes of a control connection")


def check_greeting(peer: str, ours: bytes, theirs: bytes) -> None:
    """Raise Incompatible with both values. Nothing else of the peer is read before this."""
    check_magic(theirs)
    _, our_version, our_digest, our_nonce = _GREETING.unpack(ours)
    _, version, digest, nonce = _GREETING.unpack(theirs)
    if version != our_version:
        raise Incompatible(peer, "protocol version", str(our_version), str(version))
    if digest != our_digest:
        raise Incompatible(peer, "compatibility digest", our_digest.hex(), digest.hex())
    if nonce == our_nonce:
        raise MalformedMessage("nonce", "one of its own, not ours sent back")


class Transcript:
    """What was said so far, in the order of the protocol; both ends must have the same."""

    def __init__(self, token: bytes, *said: object) -> None:
        self._token = token
        self._said = list(said)

    def add(self, *said: object) -> None:
        self._said.extend(said)

    def prove(self, role: str) -> bytes:
        return hmac.digest(self._token, pack([role, *self._said]), "sha256")

    def proves(self, role: str, proof: bytes) -> bool:
        return hmac.compare_digest(self.prove(role), proof)


def read_proof(value: object) -> bytes:
    proof = octets(value, "proof", PROOF_BYTES)
    if len(proof) != PROOF_BYTES:
        raise MalformedMessage("proof", f"{PROOF_BYTES} bytes")
    return proof
