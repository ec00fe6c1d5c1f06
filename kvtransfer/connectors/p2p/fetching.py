"""Reads one piece of a prompt's blocks: takes its leases up, re-maps where layouts differ."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from stafette.kvtransfer import layout
from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.connectors.countdown import Countdown
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.connectors.p2p.messages import Piece
from stafette.kvtransfer.errors import ChecksumMismatch, Incompatible, KvTransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.layout import BlockLayout
from stafette.kvtransfer.leases.lease import Lease
from stafette.kvtransfer.transfer import Transfer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalShare:
    """A registered part of our own pool."""

    region: str
    layout: BlockLayout


@dataclass(frozen=True, slots=True)
class Read:
    """One transfer to be made: ranges of ours and of a lease's region."""

    into: Extents
    source: Extents
    lease: Lease


class Fetch:
    """The pieces of all ranks that hold a share of the same blocks, on their way into a load."""

    def __init__(self, agent: Agent, load: Load, pieces: Sequence[Piece], places: range) -> None:
        """`places`, in the prompt, are those of the pieces' blocks that are wanted."""
        self._agent = agent
        self._load = load
        self._pieces = pieces
        self._places = places
        self._timeout_s = 0.0
        self._leases: list[tuple[Piece, Lease]] = []
        self._transfers: list[Transfer] = []
        self._lock = threading.Lock()

    def start(self, shares: Sequence[LocalShare], timeout_s: float) -> None:
        """Ask the owners for the leases, then read in the background. Blocks for the former."""
        self._timeout_s = timeout_s
        if not self._load.begin_write():
            self._reject(self._tickets())
            return
        self._load.on_ended(lambda _: self._cancel())
        try:
            self._take_leases()
            reads = self._plan(shares)
        except KvTransferError as error:
            self._end_with(error)
            return
        countdown = Countdown(len(reads), self._arrived)
        for read in reads:
            self._post(read, countdown, retry=True)

    def _tickets(self) -> list[bytes]:
        return [ticket for piece in self._pieces for ticket in piece.tickets]

    def _take_leases(self) -> None:
        for piece in self._pieces:
            for ticket in piece.tickets:
                try:
                    self._leases.append((piece, self._agent.accept(ticket)))
                except KvTransferError:
                    self._reject(self._tickets()[len(self._leases) + 1 :])
                    raise

    def _plan(self, shares: Sequence[LocalShare]) -> list[Read]:
        """Return what to read from whom, for each share of ours."""
        order = self._load.order
        first, end = self._places.start, self._places.stop
        ours = order.blocks[first - order.first : end - order.first]
        layouts = tuple(_layout_of(lease) for _, lease in self._leases)
        reads = []
        for share in shares:
            for part in _parts(share.layout, layouts):
                piece, lease = self._leases[int(part.source)]
                theirs = piece.blocks[first - piece.first : end - piece.first]
                pair = part.of_blocks((share.region, ours), (lease.region.name, theirs))
                reads.append(Read(*pair, lease))
        return reads

    def _post(self, read: Read, countdown: Countdown, retry: bool) -> None:
        """Read; once more when bytes changed on the way. The countdown hears of the end."""

        def settled(transfer: Transfer) -> None:
            error = transfer.error
            if retry and isinstance(error, ChecksumMismatch) and not self._load.ended:
                self._post(read, countdown, retry=False)
                return
            if error is not None:
                self._load.fail(error)
            countdown.done()

        try:
            transfer = self._agent.read(read.into, read.source, read.lease, self._timeout_s)
        except KvTransferError as error:
            self._load.fail(error)
            countdown.done()
            return
        with self._lock:
            self._transfers.append(transfer)
        transfer.on_settled(settled)
        if self._load.ended:
            transfer.cancel()

    def _arrived(self) -> None:
        """Nothing is written any more. If anything had failed, the load would have ended."""
        self._load.arrive(self._places.start, self._places.stop)
        self._let_go()

    def _end_with(self, error: KvTransferError) -> None:
        self._load.fail(error)
        self._let_go()

    def _let_go(self) -> None:
        for _, lease in self._leases:
            lease.release()
        self._load.end_write()

    def _cancel(self) -> None:
        with self._lock:
            transfers = list(self._transfers)
        for transfer in transfers:
            transfer.cancel()

    def _reject(self, tickets: Sequence[bytes]) -> None:
        for ticket in tickets:
            reject(self._agent, ticket)


def reject(agent: Agent, ticket: bytes) -> None:
    """Give a ticket back that nobody has taken up."""
    try:
        agent.reject(ticket)
    except KvTransferError as error:
        _log.info("a ticket is left to run out: %s", error)


def _layout_of(lease: Lease) -> BlockLayout:
    if lease.region.layout is None:
        raise Incompatible(lease.owner, "layout", "known", "none")
    return BlockLayout.read(lease.region.layout)


@lru_cache(maxsize=64)
def _parts(reader: BlockLayout, sources: tuple[BlockLayout, ...]) -> tuple[layout.Piece, ...]:
    """Return `layout.plan`, the sources named by their places."""
    return tuple(layout.plan(reader, {str(i): source for i, source in enumerate(sources)}))
