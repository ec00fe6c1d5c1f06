"""The reader's side of a visit: one connection, one question after the other."""

import time

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.transport import PeerControl, ReadJob
from stafette.kvtransfer.transports.visits.talk import (
    DONE,
    GO,
    NO,
    SENT,
    Question,
    Talk,
    refusal,
)


class Visit:
    """OSError where the connection fails, the owner's own error where it refuses."""

    def __init__(self, control: PeerControl, purpose: str, timeout_s: float) -> None:
        self.talk = Talk(control.dial(purpose, timeout_s))

    def ask(self, job: ReadJob) -> None:
        """Return when the owner holds the blocks."""
        left_s = job.deadline - time.monotonic()
        question = Question(job.grant.lease_id, job.source, job.verify, left_s)
        self.talk.say(*question.pack())
        self._expect(GO, job.deadline)

    def tell_sent(self) -> None:
        """Say that all bytes are here."""
        self.talk.say(SENT)

    def closing_word(self, deadline: float) -> int:
        """Return the digest, when every byte was what the lease promised."""
        (digest,) = self._expect(DONE, deadline)
        if type(digest) is not int:
            raise MalformedMessage("digest", "a whole number")
        return digest

    def _expect(self, kind: str, deadline: float) -> list[object]:
        match self.talk.hear(deadline):
            case [str(found), *details] if found == kind and len(details) == (kind == DONE):
                return details
            case [str(found), error] if found == NO:
                raise refusal(error)
        raise MalformedMessage("answer", f"{kind}, or {NO} and an error")
