"""The owner's side: holds the blocks while a peer's NIXL reads them."""

import time
from typing import Protocol

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.transport import Claim
from stafette.kvtransfer.transports.same_host.digests import digest
from stafette.kvtransfer.transports.visits.reception import Host, Visitor
from stafette.kvtransfer.transports.visits.talk import READ, SENT, Question

METADATA = "metadata"
_LONGEST_JOB_S = 600.0


class Registry(Protocol):
    """What a host tells peers of the agent that has our regions."""

    serial: int  # of its registrations

    def metadata(self) -> bytes: ...


class NixlHost(Host):
    def __init__(self, visitor: Visitor, registry: Registry) -> None:
        self._visitor = visitor
        self._talk = visitor.talk
        self._registry = registry

    def serve(self) -> None:
        while True:
            message = self._talk.hear()
            if not message or message[0] != READ:
                raise MalformedMessage("message", READ)
            self._answer(Question.read(message))

    def stop(self) -> None:
        """It waits only for the talk."""

    def close(self) -> None:
        """It has nothing."""

    def _answer(self, question: Question) -> None:
        deadline = time.monotonic() + min(question.left_s, _LONGEST_JOB_S)

        def move(claim: Claim) -> int:
            self._await_sent(deadline)
            return number_of(claim.region, question.source) if question.verify else 0

        self._visitor.answer(question, self._registry.serial, move)

    def _await_sent(self, deadline: float) -> None:
        """Return when the reader has all; a reader that has gone, or is late, ends the visit."""
        while True:
            match self._talk.hear(deadline):
                case ["sent"]:
                    return
                case ["metadata"]:
                    self._talk.say(METADATA, self._registry.metadata())
                case _:
                    raise MalformedMessage("message", f"{SENT} or {METADATA}")


def number_of(region: LocalRegion, extents: Extents) -> int:
    """Return what both sides of a verified job must have in common."""
    return int.from_bytes(digest(region, extents)[:8], "little")
