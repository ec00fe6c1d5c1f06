"""The reader's side of a visit: one connection, one question after the other."""

import time

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.transport import PeerControl, ReadJob
from stafette.kvtransfer.transports.visits.talk import (
    DONE,
    GO,
    NO,
    Question,
    Talk,
    refusal,
)


class Visit:
    """OSError where the connection fails, the owner's own error where it refuses."""

    def __init__(self, control: PeerControl, purpose: str, timeout_s: float) -> None:
        self.talk = Talk(control.dial(purpose, timeout_s))

    def ask(self, job: ReadJob) -> int:
        """Return the owner's greeting, when it holds the blocks."""
        left_s = job.deadline - time.monotonic()
        question = Question(job.grant.lease_id, job.source, job.verify, left_s)
        self.talk.say(*question.pack())
        return self._expect(GO, job.deadline)

    def closing_word(self, deadline: float) -> int:
        """Return the digest, when every byte was what the lease promised."""
        return self._expect(DONE, deadline)

    def _expect(self, kind: str, deadline: float) -> int:
        match self.talk.hear(deadline):
            case [str(found), int(value)] if found == kind:
                return value
            case [str(found), error] if found == NO:
                raise refusal(error)
        raise MalformedMessage("answer", f"{kind} and a number, or {NO} and an error")
