"""What workers ask of each other's host tiers: which blocks are there, and under which lease."""

from dataclasses import dataclass

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.leases.ticket import MAX_TICKET_BYTES
from stafette.kvtransfer.notifications import MAX_PAYLOAD_BYTES
from stafette.kvtransfer.strict import each, exact, pack, unpack, whole

ASK = b"tiers.ask:"  # notifications begin so
ANSWER = b"tiers.answer:"
MAX_BLOCKS = 1_024  # of one question
_U63_END = 1 << 63
_U31_END = 1 << 31


@dataclass(frozen=True, slots=True)
class Question:
    number: int  # the asker's own
    hashes: tuple[bytes, ...]

    def pack(self) -> bytes:
        return ASK + pack([self.number, b"".join(self.hashes)])

    @classmethod
    def read(cls, payload: bytes) -> "Question":
        match unpack(payload[len(ASK) :], MAX_PAYLOAD_BYTES):
            case [number, joined]:
                hashes = _split(exact(joined, "hashes", bytes))
                return cls(whole(number, "question number", _U63_END), hashes)
        raise MalformedMessage("question", "[number, hashes]")


@dataclass(frozen=True, slots=True)
class Answer:
    """The i-th of `places` in the question lies in the i-th of `rows` of the owner's pool."""

    number: int
    ticket: bytes  # empty: nothing is there
    places: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    def pack(self) -> bytes:
        return ANSWER + pack([self.number, self.ticket, self.places, self.rows])

    @classmethod
    def read(cls, payload: bytes) -> "Answer":
        match unpack(payload[len(ANSWER) :], MAX_PAYLOAD_BYTES):
            case [number, bytes(ticket), places, rows] if len(ticket) <= MAX_TICKET_BYTES:
                answer = cls(
                    whole(number, "question number", _U63_END),
                    ticket,
                    each(places, "places", lambda place: whole(place, "place", MAX_BLOCKS)),
                    each(rows, "rows", lambda row: whole(row, "row", _U31_END)),
                )
                if len(answer.places) == len(answer.rows) <= MAX_BLOCKS:
                    return answer
        raise MalformedMessage("answer", "[number, ticket, places, as many rows]")


def _split(joined: bytes) -> tuple[bytes, ...]:
    if len(joined) % HASH_BYTES or len(joined) > MAX_BLOCKS * HASH_BYTES:
        raise MalformedMessage("hashes", f"at most {MAX_BLOCKS} of {HASH_BYTES} bytes")
    return tuple(joined[i : i + HASH_BYTES] for i in range(0, len(joined), HASH_BYTES))
