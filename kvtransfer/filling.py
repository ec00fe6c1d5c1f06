"""WRITE: the owner of the source asks the target to pull, so that only the target writes.

The target has granted a lease to fill blocks of its own. The writer grants a lease to read its
source, to that target alone, and sends both along; the answer comes when the bytes are there.
"""

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from stafette.kvtransfer.errors import (
    InvalidValue,
    KvTransferError,
    MalformedMessage,
    TransferError,
    TransferTimedOut,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.held import EndReason, Terms
from stafette.kvtransfer.leases.lease import Lease
from stafette.kvtransfer.leases.table import HeldClaim, LeaseTable
from stafette.kvtransfer.leases.ticket import LEASE_ID_END, MAX_TICKET_BYTES, Ticket
from stafette.kvtransfer.peers import Peer
from stafette.kvtransfer.reading import Plan
from stafette.kvtransfer.strict import exact, number, octets, whole
from stafette.kvtransfer.transfer import Transfer
from stafette.kvtransfer.transport import PeerInfo

FILL = "agent.fill"
TRANSPORT = "fill"  # as which the writer's side counts it: the target chooses the real one
_MOST_S = 86_400.0


@dataclass(frozen=True, slots=True)
class FillOrder:
    """What a writer asks of the target, by the target's lease and under its own."""

    lease_id: int
    into: Extents  # the target's
    source: Extents  # the writer's
    ticket: bytes  # for the source
    timeout_s: float
    verify: bool

    def pack(self) -> list[object]:
        head = [self.lease_id, self.into.pack(), self.source.pack()]
        return [*head, self.ticket, self.timeout_s, self.verify]

    @classmethod
    def read(cls, value: object) -> "FillOrder":
        match value:
            case [lease_id, into, source, ticket, timeout_s, verify]:
                return cls(
                    whole(lease_id, "lease id", LEASE_ID_END),
                    Extents.read(into),
                    Extents.read(source),
                    octets(ticket, "ticket", MAX_TICKET_BYTES),
                    min(_MOST_S, number(timeout_s, "timeout")),
                    exact(verify, "verify", bool),
                )
        raise MalformedMessage("fill", "[lease id, into, source, ticket, timeout, verify]")


class Target:
    """The side that is filled. `pull` posts a read of what a ticket covers, and returns it."""

    def __init__(
        self,
        leases: LeaseTable,
        overwrite: Callable[[Extents], None],
        pull: Callable[[FillOrder], Transfer],
    ) -> None:
        self._leases = leases
        self._overwrite = overwrite
        self._pull = pull

    def fill(self, peer: PeerInfo, payload: object) -> "Future[object]":
        """Return a future that is done when the bytes are there, and nothing writes any more."""
        order = FillOrder.read(payload)
        if Ticket.read(order.ticket).owner != peer.name:
            raise MalformedMessage("ticket", f"one of {peer.name}")
        hold = self._leases.claim(peer.name, order.lease_id, order.into, "fill")
        claim = hold.__enter__()
        try:
            self._overwrite(order.into)
            transfer = self._pull(order)
        except BaseException:
            hold.__exit__(None, None, None)
            raise
        answer: Future[object] = Future()
        self._leases.when_ending(claim, transfer.cancel)
        transfer.on_settled(partial(_settle, claim, hold, answer))
        return answer


def _settle(
    claim: HeldClaim,
    hold: AbstractContextManager[HeldClaim],
    answer: "Future[object]",
    transfer: Transfer,
) -> None:
    """Everything is written, or nothing is written any more: let the lease go, then answer."""
    error = transfer.error
    try:
        claim.check_lease()
    except TransferError as ended:
        error = ended
    hold.__exit__(None, None, None)
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)


class Writer:
    """The side that has the bytes. `executor` waits for the targets' answers."""

    def __init__(self, leases: LeaseTable, name: str, epoch: int, executor: Executor) -> None:
        self._leases = leases
        self._name = name
        self._epoch = epoch
        self._executor = executor

    def write(self, plan: Plan, lease: Lease, transfer: Transfer, verify: bool) -> None:
        """Let the target pull what the plan says: its `into` is the target's, `source` ours."""
        peer, blocks = plan.peer, plan.source.blocks(plan.local.info.block_bytes)
        ttl_s = min(transfer.timeout_s, self._leases.longest_s)
        try:
            held = self._leases.grant(plan.local, blocks, Terms("read", ttl_s, peer.info.name))
        except InvalidValue as error:  # no lease is left
            transfer.finish(TransferError(str(error)))
            return
        ticket = Ticket(self._name, self._epoch, held.id).pack()
        order = FillOrder(lease.id, plan.into, plan.source, ticket, transfer.timeout_s, verify)
        transfer.on_settled(lambda _: self._end(held.id, EndReason.RELEASED))
        transfer.started(TRANSPORT, lambda: self._end(held.id, EndReason.REVOKED))
        self._executor.submit(self._ask, peer, order, transfer)

    def _ask(self, peer: Peer, order: FillOrder, transfer: Transfer) -> None:
        left_s = transfer.deadline - time.monotonic()
        try:
            if left_s <= 0 or transfer.error is not None:
                raise TransferTimedOut(peer.info.name, "writing", transfer.timeout_s)
            peer.control.call(FILL, replace(order, timeout_s=left_s).pack(), left_s)
        except TransferError as error:
            transfer.finish(error)
        except KvTransferError as error:  # the target did not like what we asked
            transfer.finish(TransferError(str(error)))
        else:
            transfer.advance(transfer.total_bytes)
            transfer.finish()

    def _end(self, lease_id: int, reason: EndReason) -> None:
        self._leases.end(lease_id, reason)
