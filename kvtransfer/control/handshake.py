"""The handshake: greetings, then proofs and names, then who both are in full.

    client                                              server
    greeting {magic, version, digest, nonce}  ->
                                              <-  greeting
    [name, epoch], whom it wants, purpose, proof  ->
                                              <-  [name, epoch], proof   or   refusal
                                              <-  identity, proof of it
    identity, proof of it  ->

The client proves first: a stranger who connects learns a version, a digest and a nonce. Whoever is
connected to learns the caller's name and a proof on which to try tokens, which is why a token must
be random, and not a word that can be guessed.
"""

from dataclasses import dataclass

from stafette.kvtransfer.control import frames
from stafette.kvtransfer.control.auth import (
    GREETING_BYTES,
    MAX_IDENTITY_BYTES,
    MAX_PURPOSE_BYTES,
    Identity,
    Life,
    Transcript,
    check_greeting,
    check_magic,
    greeting,
    read_proof,
)
from stafette.kvtransfer.control.channel import Channel
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.errors import AuthFailed, MalformedMessage, PeerLost, StaleEpoch
from stafette.kvtransfer.strict import text, unpack
from stafette.kvtransfer.transport import PeerInfo

CALLS = "calls"  # the purpose of a control connection; any other is a transport's
_MAX_CLAIM_BYTES = 1_024
_MAX_SEALED_BYTES = MAX_IDENTITY_BYTES + 64
_CLIENT, _SERVER = "client", "server"
_REFUSAL: list[object] = []


@dataclass(frozen=True, slots=True)
class Party:
    """What one end brings to a handshake."""

    config: ControlConfig
    identity: Identity


@dataclass(frozen=True, slots=True)
class Admitted:
    identity: Identity
    purpose: str


def greet(channel: Channel, us: Party, wanted: PeerInfo, purpose: str, deadline: float) -> Identity:
    """Be the client; return who answered, which is the wanted life of that peer."""
    ours = greeting(us.config.digest)
    channel.send(ours, deadline)
    theirs = channel.recv_exactly(GREETING_BYTES, deadline)
    check_greeting(wanted.name, ours, theirs)
    transcript = Transcript(us.config.token, ours, theirs, channel.binding)
    claim = [Life.of(us.identity.peer).pack(), Life.of(wanted).pack(), purpose]
    transcript.add(*claim)
    _send(channel, [*claim, transcript.prove(_CLIENT)], deadline)
    found = _read_answer(channel, wanted.name, transcript, deadline)
    identity = _receive_identity(channel, _SERVER, transcript, deadline)
    _check_life(wanted, found, identity)
    _send_identity(channel, us.identity, _CLIENT, transcript, deadline)
    return identity


def admit(channel: Channel, us: Party, stranger: str, deadline: float) -> Admitted:
    """Be the server; return who knocked, and what for."""
    theirs = channel.recv_exactly(GREETING_BYTES, deadline)
    check_magic(theirs)
    ours = greeting(us.config.digest)
    channel.send(ours, deadline)
    check_greeting(stranger, ours, theirs)
    transcript = Transcript(us.config.token, theirs, ours, channel.binding)
    them, wanted, purpose = _read_claim(channel, stranger, transcript, deadline)
    me = Life.of(us.identity.peer)
    transcript.add(me.pack())
    _send(channel, [me.pack(), transcript.prove(_SERVER)], deadline)
    _send_identity(channel, us.identity, _SERVER, transcript, deadline)
    if wanted != me:
        raise StaleEpoch(us.identity.peer.name, wanted.epoch, me.epoch)
    identity = _receive_identity(channel, _CLIENT, transcript, deadline)
    if Life.of(identity.peer) != them:
        raise MalformedMessage("identity", "the name and the epoch that were proved")
    return Admitted(identity, purpose)


def _read_claim(
    channel: Channel, stranger: str, transcript: Transcript, deadline: float
) -> tuple[Life, Life, str]:
    match _receive(channel, _MAX_CLAIM_BYTES, deadline):
        case [claimed, wanted, purpose, proof]:
            them, wants = Life.read(claimed), Life.read(wanted)
            wish = text(purpose, "purpose", MAX_PURPOSE_BYTES)
            transcript.add(them.pack(), wants.pack(), wish)
            if transcript.proves(_CLIENT, read_proof(proof)):
                return them, wants, wish
            _send(channel, _REFUSAL, deadline)
            raise AuthFailed(stranger, "wrong proof")
    raise MalformedMessage("claim", "[who, whom, purpose, proof]")


def _read_answer(channel: Channel, peer: str, transcript: Transcript, deadline: float) -> Life:
    match _receive(channel, _MAX_CLAIM_BYTES, deadline):
        case []:
            raise AuthFailed(peer, "it refuses our proof")
        case [claimed, proof]:
            them = Life.read(claimed)
            transcript.add(them.pack())
            if transcript.proves(_SERVER, read_proof(proof)):
                return them
            raise AuthFailed(peer, "wrong proof")
    raise MalformedMessage("answer", "[who, proof]")


def _check_life(wanted: PeerInfo, found: Life, identity: Identity) -> None:
    if Life.of(identity.peer) != found:
        raise MalformedMessage("identity", "the name and the epoch that were proved")
    if found.name != wanted.name:
        raise PeerLost(wanted.name, f"at its address is {found.name} now")
    if found.epoch != wanted.epoch:
        raise StaleEpoch(wanted.name, wanted.epoch, found.epoch)


def _send_identity(
    channel: Channel, identity: Identity, role: str, transcript: Transcript, deadline: float
) -> None:
    body = identity.pack()
    transcript.add(body)
    _send(channel, [body, transcript.prove(role)], deadline)


def _receive_identity(
    channel: Channel, role: str, transcript: Transcript, deadline: float
) -> Identity:
    match _receive(channel, _MAX_SEALED_BYTES, deadline):
        case [bytes(body), proof]:
            transcript.add(body)
            if not transcript.proves(role, read_proof(proof)):
                raise MalformedMessage("identity", "what its sender sealed")
            return Identity.read(body)
    raise MalformedMessage("identity", "[bytes, proof]")


def _send(channel: Channel, value: object, deadline: float) -> None:
    channel.send(frames.encode(value, _MAX_SEALED_BYTES), deadline)


def _receive(channel: Channel, max_bytes: int, deadline: float) -> object:
    header = channel.recv_exactly(frames.HEADER_BYTES, deadline)
    length = frames.body_length(header, max_bytes)
    return unpack(channel.recv_exactly(length, deadline), max_bytes)
