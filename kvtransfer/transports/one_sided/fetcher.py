"""The reader's side: visits the owner, lets NIXL read in parts, and asks whether it may be used."""

import time
from collections import deque
from dataclasses import dataclass

from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    MalformedMessage,
    TransferError,
    TransportUnavailable,
)
from stafette.kvtransfer.strict import octets, whole
from stafette.kvtransfer.transport import PeerControl, PeerInfo, ReadJob
from stafette.kvtransfer.transports.cuts import Cuts
from stafette.kvtransfer.transports.one_sided.engines import Engine, Engines
from stafette.kvtransfer.transports.one_sided.host import METADATA, number_of
from stafette.kvtransfer.transports.one_sided.nixl_agent import Flight, NixlFailed, Spans
from stafette.kvtransfer.transports.one_sided.orphans import Orphan, Orphans
from stafette.kvtransfer.transports.visits.lanes import Turn, Worker
from stafette.kvtransfer.transports.visits.talk import SENT
from stafette.kvtransfer.transports.visits.visit import Visit

NAME = "nixl"
_MAX_METADATA_BYTES = 8 << 20
_ADDRESS_END = 1 << 64
_MOMENT_S = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    part_bytes: int
    depth: int  # parts under way
    poll_s: float
    dial_timeout_s: float


class Fetcher(Worker):
    """Keeps its visit from one job to the next."""

    def __init__(
        self,
        peer: PeerInfo,
        control: PeerControl,
        engines: Engines,
        orphans: Orphans,
        limits: Limits,
    ) -> None:
        self._peer = peer
        self._control = control
        self._engines = engines
        self._orphans = orphans
        self._limits = limits
        self._visit: Visit | None = None

    def work(self, turn: Turn) -> bool:
        job = turn.job
        visit = self._visited(turn)
        serial = visit.ask(job)  # what the owner refuses leaves everything as it was
        try:
            with self._engines.use() as engine:
                name = self._meet(engine, serial, visit, job.deadline)
                over = self._read(turn, engine, name)
        except NixlFailed as error:
            self.close()
            raise self._told(error) from error
        except TransferError:
            self.close()  # the owner waits for us to say that all is here
            raise
        if not over:
            self.close()
            return False
        self._conclude(visit, job)
        return True

    def interrupt(self) -> None:
        """NIXL cannot be woken; whoever waits for it looks at the turn every moment."""
        visit = self._visit
        if visit is not None:
            visit.talk.shutdown()

    def close(self) -> None:
        visit, self._visit = self._visit, None
        if visit is not None:
            visit.talk.close()

    def _visited(self, turn: Turn) -> Visit:
        if self._visit is None:
            left_s = min(turn.job.deadline - time.monotonic(), self._limits.dial_timeout_s)
            self._visit = Visit(self._control, NAME, left_s)
            turn.check()
        return self._visit

    def _meet(self, engine: Engine, serial: int, visit: Visit, deadline: float) -> str:
        """Return the name of the peer's NIXL agent, which knows of all that it has registered."""

        def fetch() -> bytes:
            visit.talk.say(METADATA)
            match visit.talk.hear(deadline):
                case ["metadata", blob]:
                    return octets(blob, "NIXL's metadata", _MAX_METADATA_BYTES)
            raise MalformedMessage("message", f"[{METADATA}, bytes]")

        return engine.know(self._peer, serial, fetch)

    def _read(self, turn: Turn, engine: Engine, name: str) -> bool:
        """Return True when everything is here, False when somebody else awaits the rest."""
        turn.begin()
        under_way: deque[Flight] = deque()
        try:
            self._fly(turn, engine, name, under_way)
        except Exception as error:
            if self._quiet(under_way):
                raise
            told = turn.error_of(self._told(error))
            orphan = Orphan(self._control, engine, [*under_way], turn.job, told)
            self._orphans.adopt(orphan, turn.link_closed)
            return False
        return True

    def _fly(self, turn: Turn, engine: Engine, name: str, under_way: deque[Flight]) -> None:
        """Read part by part; what is under way when an error comes is left in the list."""
        job, part_bytes = turn.job, self._limits.part_bytes
        into, source = Cuts(job.into, part_bytes), Cuts(job.source, part_bytes)
        ours, theirs = job.local.info, job.remote
        address = whole(theirs.hints.get(NAME), "address", _ADDRESS_END)
        for number in range(len(into)):
            if len(under_way) == self._limits.depth:
                self._land(turn, under_way)
            here = Spans.of(ours.kind, ours.device, job.local.address, into[number])
            there = Spans.of(theirs.kind, theirs.device, address, source[number])
            under_way.append(engine.agent.read(name, here, there))
        while under_way:
            self._land(turn, under_way)

    def _land(self, turn: Turn, under_way: deque[Flight]) -> None:
        flight = under_way[0]
        while not flight.landed():
            turn.check()
            time.sleep(self._limits.poll_s)  # without a pause NIXL's own thread starves
        under_way.popleft()
        if flight.error is not None:
            raise flight.error
        turn.job.advance(flight.nbytes)

    def _quiet(self, under_way: deque[Flight]) -> bool:
        """Whether all lands within a moment, as it does from a peer that lives."""
        limit = time.monotonic() + _MOMENT_S
        while not all([flight.landed() for flight in under_way]):  # each of them is asked
            if time.monotonic() >= limit:
                return False
            time.sleep(self._limits.poll_s)
        return True

    def _told(self, error: Exception) -> Exception:
        """What NIXL refuses while the peer is there speaks against this way, not the peer."""
        if isinstance(error, NixlFailed) and not error.disconnected:
            return TransportUnavailable(NAME, self._peer.name, str(error))
        return error

    def _conclude(self, visit: Visit, job: ReadJob) -> None:
        visit.talk.say(SENT)
        digest = number_of(job.local, job.into) if job.verify else 0
        if visit.closing_word(job.deadline) != digest:
            raise ChecksumMismatch(self._peer.name, job.remote.name)
