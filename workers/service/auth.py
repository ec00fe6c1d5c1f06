"""Both ends of a worker's stream prove that they know the cluster's token, which never travels.

    frontend -> [1, name, nonce]
    worker   -> [name, epoch, nonce, proof]
    frontend -> [proof]
    worker   -> [description]

A proof is an HMAC-SHA256 over the prover's role and all that was said before it on this stream.
"""

import hmac
import secrets
from dataclasses import dataclass

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import octets, pack, text, unpack, whole

VERSION = 2  # 2: messages that wait leave together
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_MAX_NAME_BYTES = 128
MAX_BYTES = 1_024  # of each of these messages
_U64_END = 1 << 64
_FRONTEND, _WORKER = "frontend", "worker"


@dataclass(frozen=True, slots=True)
class Greeting:
    """The frontend's first message."""

    name: str
    nonce: bytes

    @classmethod
    def make(cls, name: str) -> "Greeting":
        return cls(name, secrets.token_bytes(_NONCE_BYTES))

    def pack(self) -> bytes:
        return pack([VERSION, self.name, self.nonce])

    @classmethod
    def read(cls, data: bytes) -> "Greeting":
        match unpack(data, MAX_BYTES):
            case [version, name, nonce]:
                if version != VERSION:
                    raise MalformedMessage("version", f"{VERSION}, not {version!r}"[:64])
                return cls(text(name, "name", _MAX_NAME_BYTES), _nonce(nonce))
        raise MalformedMessage("greeting", "[version, name, nonce]")


@dataclass(frozen=True, slots=True)
class Challenge:
    """The worker's answer to it."""

    name: str
    epoch: int
    nonce: bytes
    proof: bytes

    @classmethod
    def make(cls, token: bytes, greeting: Greeting, name: str, epoch: int) -> "Challenge":
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return cls(name, epoch, nonce, _prove(token, _WORKER, greeting, name, epoch, nonce))

    def pack(self) -> bytes:
        return pack([self.name, self.epoch, self.nonce, self.proof])

    @classmethod
    def read(cls, data: bytes) -> "Challenge":
        match unpack(data, MAX_BYTES):
            case [name, epoch, nonce, proof]:
                return cls(
                    text(name, "name", _MAX_NAME_BYTES),
                    whole(epoch, "epoch", _U64_END),
                    _nonce(nonce),
                    octets(proof, "proof", _PROOF_BYTES),
                )
        raise MalformedMessage("challenge", "[name, epoch, nonce, proof]")

    def is_proved(self, token: bytes, greeting: Greeting) -> bool:
        """Whether a worker of our cluster made it, for this greeting."""
        wanted = _prove(token, _WORKER, greeting, self.name, self.epoch, self.nonce)
        return hmac.compare_digest(self.proof, wanted)

    def response(self, token: bytes, greeting: Greeting) -> bytes:
        """Return the frontend's proof."""
        return pack([self._response(token, greeting)])

    def is_answered(self, token: bytes, greeting: Greeting, data: bytes) -> bool:
        match unpack(data, MAX_BYTES):
            case [bytes(proof)]:
                return hmac.compare_digest(proof, self._response(token, greeting))
        raise MalformedMessage("response", "[proof]")

    def _response(self, token: bytes, greeting: Greeting) -> bytes:
        return _prove(token, _FRONTEND, greeting, self.name, self.epoch, self.nonce)


def _prove(
    token: bytes, role: str, greeting: Greeting, name: str, epoch: int, nonce: bytes
) -> bytes:
    said = pack([role, VERSION, greeting.name, greeting.nonce, name, epoch, nonce])
    return hmac.digest(token, said, "sha256")


def _nonce(value: object) -> bytes:
    nonce = octets(value, "nonce", _NONCE_BYTES)
    if len(nonce) != _NONCE_BYTES:
        raise MalformedMessage("nonce", f"{_NONCE_BYTES} bytes")
    return nonce
