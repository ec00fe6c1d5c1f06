"""The leases that this process holds: taken up, kept alive, given back."""

import logging
from collections.abc import Callable
from concurrent.futures import Executor

from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.leases.heartbeats import Ask, Heartbeats
from stafette.kvtransfer.leases.lease import Lease, read_opened
from stafette.kvtransfer.leases.service import OPEN, RELEASE
from stafette.kvtransfer.leases.ticket import Ticket

_log = logging.getLogger(__name__)


class LeaseHolder:
    """`ask` calls an owner by its name, `executor` does so in the background."""

    def __init__(
        self, config: LeaseConfig, ask: Ask, executor: Executor, clock: Callable[[], float]
    ) -> None:
        self._ask = ask
        self._executor = executor
        self._clock = clock
        self._heartbeats = Heartbeats(config, ask, executor, clock)

    def open(self, ticket: Ticket) -> Lease:
        """Take a lease up: one question to its owner. LeaseEnded when it is too late."""
        asked_at = self._clock()
        answer = self._ask(ticket.owner, OPEN, ticket.lease_id)
        opened = read_opened(answer, ticket.lease_id, ticket.epoch)
        lease = Lease(ticket.owner, opened, asked_at, self._released)
        self._heartbeats.add(lease)
        return lease

    def reject(self, ticket: Ticket) -> None:
        """Tell the owner, soon, that nobody will take it up."""
        self._give_back(ticket.owner, ticket.lease_id, wanted=False)

    def drop_owner(self, owner: str, reason: str) -> None:
        self._heartbeats.drop_owner(owner, reason)

    def close(self) -> None:
        """End all heartbeats. What was not released runs out at its owner."""
        self._heartbeats.close()

    def _released(self, lease: Lease) -> None:
        self._heartbeats.remove(lease)
        self._give_back(lease.owner, lease.id, wanted=True)

    def _give_back(self, owner: str, lease_id: int, wanted: bool) -> None:
        try:
            self._executor.submit(self._tell, owner, lease_id, wanted)
        except RuntimeError:  # closed meanwhile: it runs out at its owner
            _log.info("lease %#x of %s is left to run out", lease_id, owner)

    def _tell(self, owner: str, lease_id: int, wanted: bool) -> None:
        try:
            self._ask(owner, RELEASE, [lease_id, wanted])
        except KvTransferError as error:
            _log.info("lease %#x of %s runs out by itself: %s", lease_id, owner, error)
