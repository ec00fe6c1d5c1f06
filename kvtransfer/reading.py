"""One READ from its post to its end: which way it goes, and another way when that one is closed."""

from collections.abc import Callable
from dataclasses import dataclass

from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    PeerLost,
    TransferError,
    TransferTimedOut,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.peers import Peer
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.routes import Route
from stafette.kvtransfer.transfer import Transfer
from stafette.kvtransfer.transport import Grant, OneRange, ReadJob

# What speaks against the way, and not against what was asked.
_FAULTS_OF_THE_WAY = (PeerLost, ChecksumMismatch, TransportUnavailable)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is copied, checked and merged once, posted as often as wanted."""

    peer: Peer
    local: LocalRegion
    into: Extents
    source: Extents
    transport: str | None  # None: the quickest
    one: OneRange | None = None  # what it is, where it is a single range

    @property
    def total_bytes(self) -> int:
        return self.into.total_bytes if self.one is None else self.one[2]

    def allows(self, transport: str) -> bool:
        return self.transport is None or transport == self.transport


class Reading:
    """The attempts of one transfer. Only a way that turns out not to exist is replaced."""

    def __init__(
        self, plan: Plan, transfer: Transfer, verify: bool, clock: Callable[[], float]
    ) -> None:
        self.plan = plan
        self.transfer = transfer
        self.verify = verify
        self._clock = clock
        self._tried: set[str] = set()

    def start(self, grant: Grant, route: Route | None = None) -> None:
        """Take the best way that was not tried yet, which the caller may know."""
        plan, transfer = self.plan, self.transfer
        if transfer.error is not None:  # given up before it began
            transfer.finish()
            return
        try:
            if route is None:
                route = plan.peer.route(grant.region, plan.local, plan.total_bytes, self._allowed)
            link = plan.peer.link(route.transport)
        except TransferError as error:
            transfer.finish(error)
            return
        self._tried.add(route.transport)
        job = _Job(self, grant, route, self._clock())
        transfer.started(
            route.transport, lambda: link.interrupt(job), lambda until: link.lend(job, until)
        )
        link.start(job)

    def ended(self, job: "_Job", error: TransferError | None) -> None:
        transfer, now = self.transfer, self._clock()
        if isinstance(transfer.error, TransferTimedOut):
            job.route.timed_out(transfer.timeout_s, now)
        elif isinstance(error, _FAULTS_OF_THE_WAY):
            job.route.failed(now)
        elif error is None and transfer.error is None:
            job.route.succeeded(self.plan.total_bytes, now - job.began)
        if isinstance(error, TransportUnavailable) and self.plan.transport is None:
            self.start(job.grant)
        else:
            transfer.finish(error)

    def _allowed(self, transport: str) -> bool:
        if self.plan.transport is not None:
            return self.plan.allows(transport)
        return transport not in self._tried


class _Job(ReadJob):
    """One attempt, as its transport sees it."""

    def __init__(self, reading: Reading, grant: Grant, route: Route, began: float) -> None:
        plan, transfer = reading.plan, reading.transfer
        self.local = plan.local
        self.into = plan.into
        self.remote = grant.region
        self.source = plan.source
        self.grant = grant
        self.deadline = transfer.deadline
        self.verify = reading.verify
        self.stop = transfer.stop
        self.route = route
        self.began = began
        self._reading = reading

    def advance(self, nbytes: int) -> None:
        self._reading.transfer.advance(nbytes)

    def finish(self, error: TransferError | None = None) -> None:
        self._reading.ended(self, error)
