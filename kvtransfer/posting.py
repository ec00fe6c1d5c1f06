"""Posts reads: what is wrong is raised at once, what the world breaks ends the transfer."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from stafette.kvtransfer.deadlines import Watchdog
from stafette.kvtransfer.errors import (
    InvalidValue,
    StaleEpoch,
    TransferError,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import Extents, check_pairs, merge_pairs
from stafette.kvtransfer.leases.held import Use
from stafette.kvtransfer.leases.lease import Lease
from stafette.kvtransfer.notifications import check_payload
from stafette.kvtransfer.notifier import Notifier
from stafette.kvtransfer.peers import Peer
from stafette.kvtransfer.reading import Plan, Reading
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.routes import Route
from stafette.kvtransfer.telemetry import TransferTally
from stafette.kvtransfer.transfer import DoneTransfer, Transfer, TransferState
from stafette.kvtransfer.transport import Grant, OneRange

_GIVEN_BY: dict[Use, str] = {"read": "grant", "fill": "offer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    transport: str | None = None  # None: the one that is expected to be quickest
    verify: bool | None = None  # None: as the agent's config says
    notify: bytes = b""  # what the owner is told when everything has arrived

    def __post_init__(self) -> None:
        check_payload(self.notify)


class Prepared:
    """A read that was checked and merged. May be posted again and again, from any thread."""

    def __init__(self, poster: "Poster", plan: Plan, options: ReadOptions) -> None:
        self._poster = poster
        self._plan = plan
        self._options = options

    def post(self, lease: Lease, timeout_s: float | None = None) -> Transfer:
        """Begin, under a lease of the owner that it was prepared for."""
        return self._poster.post(self._plan, lease, timeout_s, self._options)


class Poster:
    def __init__(self, timeout_s: float, verify: bool, notifier: Notifier, watchdog: Watchdog):
        self._timeout_s = timeout_s
        self._verify = verify
        self._notifier = notifier
        self._watchdog = watchdog
        self.tally = TransferTally()

    def plan(
        self, peer: Peer, local: LocalRegion, pairs: tuple[Extents, Extents], transport: str | None
    ) -> Plan:
        """Check and merge (into, source)."""
        into, source = pairs
        here, there = into.one, source.one
        if here is not None and there is not None and here[1] == there[1] > 0:
            one = here[0], there[0], here[1]
            return Plan(peer, local, into, source, transport, one)
        check_pairs(into, source)
        into, source = merge_pairs(into, source)
        if not len(into):
            raise InvalidValue("into", 0, "a transfer moves at least one byte")
        return Plan(peer, local, into, source, transport)

    def post(
        self, plan: Plan, lease: Lease, timeout_s: float | None, options: ReadOptions
    ) -> Transfer:
        _check_lease(plan.peer, lease, plan.source, "read")
        limit_s = self._limit_s(timeout_s)
        route = self._small_route(plan, lease, options)
        if route is not None and plan.one is not None:
            done = self._read_now(plan, plan.one, lease.grant, route, limit_s)
            if done is not None:
                if options.notify:
                    self._notifying(plan.peer, options.notify)(done)
                return done
        transfer = self._begin(plan, limit_s, options, plan.into)
        self._start(plan, transfer, lease, options, route)
        return transfer

    def begin_write(
        self, plan: Plan, lease: Lease, timeout_s: float | None, options: ReadOptions
    ) -> Transfer:
        """Return the handle of a transfer in which nothing of ours is written."""
        _check_lease(plan.peer, lease, plan.into, "fill")
        return self._begin(plan, self._limit_s(timeout_s), options, None)

    def _limit_s(self, timeout_s: float | None) -> float:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        if not limit_s > 0:
            raise InvalidValue("timeout_s", limit_s, "must be above 0")
        return limit_s

    def _verifies(self, options: ReadOptions) -> bool:
        return self._verify if options.verify is None else options.verify

    def _small_route(self, plan: Plan, lease: Lease, options: ReadOptions) -> Route | None:
        """Return the way to read a single range; None for others, and when anything is wrong."""
        if plan.one is None or lease.ended is not None or self._verifies(options):
            return None
        peer, grant = plan.peer, lease.grant
        if peer.info.epoch != grant.epoch:
            return None
        try:
            return peer.route(grant.region, plan.local, plan.total_bytes, plan.allows)
        except TransportUnavailable:  # whoever asks again tells why
            return None

    def _read_now(
        self, plan: Plan, one: OneRange, grant: Grant, route: Route, limit_s: float
    ) -> DoneTransfer | None:
        """Read a little here, where that is quicker than to have somebody do it; None: it is not.

        Also when anything is wrong: whoever does it then, finds what.
        """
        peer, began = plan.peer, time.monotonic()
        link = peer.known_link(route.transport)
        if link is None or not link.read_now(one, grant, plan.local):
            return None
        name, nbytes = peer.info.name, plan.total_bytes
        transfer = DoneTransfer(name, route.transport, nbytes, began, limit_s)
        route.succeeded(nbytes, transfer.seconds)
        self.tally.count(transfer)
        return transfer

    def _begin(
        self, plan: Plan, limit_s: float, options: ReadOptions, into: Extents | None
    ) -> Transfer:
        doing = "reading" if into is not None else "writing"
        transfer = Transfer(plan.peer.info.name, len(plan.into), plan.total_bytes, limit_s, doing)
        self._watchdog.watch(transfer, into)
        transfer.on_settled(self.tally.count)
        if options.notify:
            transfer.on_settled(self._notifying(plan.peer, options.notify))
        return transfer

    def _start(
        self,
        plan: Plan,
        transfer: Transfer,
        lease: Lease,
        options: ReadOptions,
        route: Route | None,
    ) -> None:
        if lease.ended is not None:
            transfer.finish(lease.ended)
        elif plan.peer.info.epoch != lease.grant.epoch:
            found = plan.peer.info.epoch
            transfer.finish(StaleEpoch(plan.peer.info.name, lease.grant.epoch, found))
        elif plan.local.withdrawn.value:
            transfer.finish(TransferError(f"our region {plan.local.name} was deregistered"))
        else:
            verify = self._verifies(options)
            Reading(plan, transfer, verify, time.monotonic).start(lease.grant, route)

    def _notifying(self, peer: Peer, payload: bytes) -> Callable[[Transfer], None]:
        def notify(transfer: Transfer) -> None:
            if transfer.poll() is TransferState.DONE:
                self._notifier.send(peer, transfer.id, payload, self._timeout_s)

        return notify


def _check_lease(peer: Peer, lease: Lease, theirs: Extents, use: Use) -> None:
    """Find the caller's mistakes; whatever passes here, the owner checks again."""
    name, region = peer.info.name, lease.region
    if lease.owner != name:
        raise InvalidValue("lease", lease.owner, f"must be one of {name}, as the transfer is")
    if lease.use != use:
        remedy = f"must be a lease to {use}, from the owner's {_GIVEN_BY[use]}"
        raise InvalidValue("lease.use", lease.use, remedy)
    if theirs.region != region.name:
        remedy = f"must be {region.name!r}, which the lease is for"
        raise InvalidValue("extents.region", theirs.region, remedy)
    if not theirs.within(region.nbytes):
        remedy = f"must end within the {region.nbytes} bytes of {name}/{region.name}"
        end = int((theirs.offsets + theirs.lengths).max())
        raise InvalidValue("extents", end, remedy)
