"""The transfer agent: offers this process's KV memory to authorised peers, and reads theirs.

Two agents that know each other's metadata move blocks like this: the owner grants a lease on blocks
of a region and sends its ticket along; the reader takes the lease up, and reads under it. Only the
owner of a pool ever writes into it: a write asks the target to read.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stafette.kvtransfer import registry
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.agent_stats import AgentStats
from stafette.kvtransfer.control.auth import Identity
from stafette.kvtransfer.control.client import ControlClient
from stafette.kvtransfer.control.endpoint import NAME as CONTROL
from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.control.server import ControlServer, SlowOperation
from stafette.kvtransfer.deadlines import Watchdog
from stafette.kvtransfer.errors import Incompatible, InvalidValue, TransferTimedOut
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.filling import FILL, FillOrder, Target, Writer
from stafette.kvtransfer.layout import BlockLayout
from stafette.kvtransfer.leases import service
from stafette.kvtransfer.leases.held import EndReason, Int64s, Terms, Use
from stafette.kvtransfer.leases.holder import LeaseHolder
from stafette.kvtransfer.leases.lease import Lease
from stafette.kvtransfer.leases.reaper import Reaper
from stafette.kvtransfer.leases.table import LeaseTable
from stafette.kvtransfer.leases.ticket import Ticket
from stafette.kvtransfer.ledger import Ledger
from stafette.kvtransfer.metadata import Metadata, compatibility_digest, decode, encode
from stafette.kvtransfer.notifications import Inbox, Notification, Take
from stafette.kvtransfer.notifier import NOTIFY, Notifier
from stafette.kvtransfer.peer_table import PeerTable
from stafette.kvtransfer.peers import Peer
from stafette.kvtransfer.posting import Poster, Prepared, ReadOptions
from stafette.kvtransfer.region_table import RegionTable
from stafette.kvtransfer.regions import RegionInfo
from stafette.kvtransfer.routes import RouteView
from stafette.kvtransfer.transfer import Transfer, next_number
from stafette.kvtransfer.transport import Operation, PeerInfo, Surroundings, Transport

OnEnded = Callable[[EndReason], None]
_MOST_THREADS = 32  # that wait for answers of peers
_DEFAULT_OPTIONS = ReadOptions()


class Agent:
    """Any thread may call any method. Posts never block; `close` ends everything."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.epoch = time.time_ns()  # a later life of this name has a higher one
        clock = time.monotonic
        self._ledger = Ledger(self.epoch, config.lease.max_leases)
        self._leases = LeaseTable(config.name, self._ledger, config.lease, clock)
        self._target = Target(self._leases, self._overwrite_extents, self._pull)
        self._inbox = Inbox()
        self._transports: dict[str, Transport] = {}
        self._ready = threading.Event()
        try:
            self._make_transports()
            self._server = self._listen()
        except BaseException:
            self._close_transports()
            raise
        # Nothing from here on can fail: these have threads, or will have.
        self._regions = RegionTable(self._ledger, self._transports)
        self._executor = ThreadPoolExecutor(_MOST_THREADS, f"agent-{config.name}")
        self._reaper = Reaper(self._leases.expire)
        self._holder = LeaseHolder(config.lease, self._ask, self._executor, clock)
        self._notifier = Notifier(config.call_timeout_s)
        self._watchdog = Watchdog(config.name)
        self._poster = Poster(config.timeout_s, config.verify, self._notifier, self._watchdog)
        self._writer = Writer(self._leases, config.name, self.epoch, self._executor)
        self._peers = PeerTable(self._make_peer, self._holder.drop_owner)
        self._info = self._describe()
        self._ready.set()

    # Memory of this process

    def register(
        self,
        name: str,
        buffer: object,
        block_bytes: int = 0,
        layout: BlockLayout | None = None,
    ) -> RegionInfo:
        """Offer memory: SharedMemory, FileMemory, a tensor or a buffer; 0: as the layout says."""
        packed = None if layout is None else layout.pack()
        if layout is not None and not block_bytes:
            block_bytes = layout.block_bytes
        return self._regions.add(buffer, name, block_bytes, packed)

    def deregister(self, name: str) -> None:
        """Withdraw memory. All leases on it end; transfers into it are cancelled and awaited."""
        region = self._regions.get(name)
        region.withdrawn.value = 1  # before we look for what may write into it
        self._leases.end_all(EndReason.REGION_GONE, lambda lease: lease.region is region)
        deadline = time.monotonic() + self.config.call_timeout_s
        for transfer in self._watchdog.into(name):
            transfer.cancel()
            if not transfer.wait_settled(max(0.0, deadline - time.monotonic())):
                limit_s = self.config.call_timeout_s
                raise TransferTimedOut(transfer.peer, f"cancelling a read into {name}", limit_s)
        self._regions.remove(name)

    def overwrite(self, region: str, blocks: Sequence[int] | Int64s) -> None:
        """Say, before it happens, that blocks get other content: no reader takes it for the old."""
        numbers = np.asarray(blocks, np.int64)
        self._ledger.overwrite(self._regions.get(region).name, numbers)

    def quarantined(self, region: str) -> Int64s:
        """Return the blocks of ours that a transfer may still write into."""
        info = self._regions.get(region).info
        held = [into.blocks(info.block_bytes) for into in self._watchdog.into(region).values()]
        return np.unique(np.concatenate(held)) if held else np.empty(0, np.int64)

    # Leases

    def grant(
        self,
        region: str,
        blocks: Sequence[int] | Int64s,
        ttl_s: float | None = None,
        reader: str = "",
        on_ended: OnEnded | None = None,
    ) -> bytes:
        """Lease blocks for reading; return the ticket. They stay as they are until `on_ended`."""
        return self._lease(region, blocks, self._terms("read", ttl_s, reader, on_ended))

    def offer(
        self,
        region: str,
        blocks: Sequence[int] | Int64s,
        ttl_s: float | None = None,
        writer: str = "",
        on_ended: OnEnded | None = None,
    ) -> bytes:
        """Lease blocks to be filled by a peer's `write`; they are free to use from `on_ended`."""
        return self._lease(region, blocks, self._terms("fill", ttl_s, writer, on_ended))

    def revoke(self, ticket: bytes) -> bool:
        """Take a lease back. What is read under it from now on fails."""
        return self._leases.end(Ticket.read(ticket).lease_id, EndReason.REVOKED)

    def accept(self, ticket: bytes) -> Lease:
        """Take up a lease of a peer; it is kept alive until it is released. Asks its owner."""
        read = Ticket.read(ticket)
        self._peers.life(read.owner, read.epoch)
        return self._holder.open(read)

    def reject(self, ticket: bytes) -> None:
        """Tell the owner of a ticket that its blocks are not wanted."""
        self._holder.reject(Ticket.read(ticket))

    def leased(self, region: str) -> Int64s:
        """Return the blocks of ours that peers may be reading, or filling."""
        return self._leases.leased(self._regions.get(region).name)

    # Transfers

    def read(
        self,
        into: Extents,
        source: Extents,
        lease: Lease,
        timeout_s: float | None = None,
        options: ReadOptions = _DEFAULT_OPTIONS,
    ) -> Transfer:
        """Begin to copy ranges of a peer's region into ranges of ours, pair by pair."""
        return self.prepare(into, source, lease.owner, options).post(lease, timeout_s)

    def prepare(
        self, into: Extents, source: Extents, owner: str, options: ReadOptions = _DEFAULT_OPTIONS
    ) -> Prepared:
        """Check and merge a read that is posted often."""
        local, peer = self._regions.covering(into), self._peers.get(owner)
        plan = self._poster.plan(peer, local, (into, source), options.transport)
        return Prepared(self._poster, plan, options)

    def write(
        self,
        source: Extents,
        into: Extents,
        lease: Lease,
        timeout_s: float | None = None,
        options: ReadOptions = _DEFAULT_OPTIONS,
    ) -> Transfer:
        """Let a peer copy ranges of ours into ranges of its own, which its offer covers."""
        local, peer = self._regions.covering(source), self._peers.get(lease.owner)
        plan = self._poster.plan(peer, local, (into, source), options.transport)
        verify = self.config.verify if options.verify is None else options.verify
        transfer = self._poster.begin_write(plan, lease, timeout_s, options)
        self._writer.write(plan, lease, transfer, verify)
        return transfer

    def routes(self, peer: str) -> dict[str, RouteView]:
        """Return what each transport to a peer costs, and which of them rest."""
        return self._peers.get(peer).routes()

    # Peers

    def metadata(self) -> bytes:
        """Return what peers need to know of us, as of now."""
        regions = self._regions.infos()
        digest = compatibility_digest(self.config.compatibility)
        return encode(Metadata(self._info, regions, digest))

    def add_peer(self, metadata: bytes) -> str:
        """Get to know a peer; return its name. A newer life of it replaces an older one."""
        read = decode(metadata)
        ours = compatibility_digest(self.config.compatibility)
        if read.digest != ours:
            what = "compatibility digest"
            raise Incompatible(read.peer.name, what, ours.hex(), read.digest.hex())
        if read.peer.name == self.config.name:
            raise InvalidValue("peer", read.peer.name, "is our own name: each agent has its own")
        return self._peers.add(read)

    def remove_peer(self, name: str) -> None:
        """Forget a peer; what is under way with it ends with PeerLost."""
        self._peers.remove(name)

    def peers(self) -> list[str]:
        return self._peers.names()

    def notify(self, peer: str, payload: bytes, timeout_s: float | None = None) -> None:
        """Send some bytes, once, in the background."""
        limit_s = self.config.timeout_s if timeout_s is None else timeout_s
        self._notifier.send(self._peers.get(peer), next_number(), payload, limit_s)

    def notifications(self, timeout_s: float = 0.0) -> list[Notification]:
        """Return what peers have sent; wait that long for a first one."""
        return self._inbox.fetch(timeout_s)

    def subscribe(self, prefix: bytes, take: Take) -> None:
        """Get the notifications that begin so, in the thread that brings them: do not block it."""
        self._inbox.subscribe(prefix, take)

    def unsubscribe(self, prefix: bytes) -> None:
        self._inbox.unsubscribe(prefix)

    def connect(self, peer: str, timeout_s: float | None = None) -> None:
        """Find out now whether a peer is there; everything else connects by itself."""
        limit_s = self.config.call_timeout_s if timeout_s is None else timeout_s
        self._peers.get(peer).control.connect(limit_s)

    def ping(self, peer: str, timeout_s: float) -> None:
        """Ask a peer something that it answers at once; an error tells why it did not."""
        self._peers.get(peer).control.call(service.RENEW, [], timeout_s)

    def on_lost(self, call: Callable[[str, bool], None]) -> None:
        """Hear of each peer whose connection breaks, or whose life is over: its name, and which.

        A peer whose connection broke may still be there: `connect` tells. `call` must not block.
        """
        self._peers.on_lost.append(call)

    def stats(self) -> AgentStats:
        return AgentStats(
            transfers=self._poster.tally.read(),
            unsettled=len(self._watchdog.unsettled()),
            leases=self._leases.counters(),
            control=self._server.counters(),
            notified=self._notifier.delivered,
            not_notified=self._notifier.undelivered,
            repeated_notifications=self._inbox.repeated,
        )

    def close(self) -> None:
        """End all leases, transfers, connections and threads. Safe to call twice."""
        self._leases.close()
        self._ledger.end_epoch()
        self._peers.close()
        self._server.close()
        self._close_transports()
        self._notifier.close()
        self._holder.close()
        self._reaper.close()
        self._watchdog.close()
        self._executor.shutdown()

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_transports(self) -> None:
        surroundings = Surroundings(self.config.name, self.epoch, self._leases, self._ledger)
        for name in self.config.transports:
            options = self.config.transport_options.get(name)
            self._transports[name] = registry.make(name, surroundings, options)

    def _listen(self) -> ControlServer:
        control = self.config.control()
        return ControlServer(
            control, self._identity, self._operations(), self._on_stream, self._on_peer
        )

    def _close_transports(self) -> None:
        for transport in self._transports.values():
            transport.close()
        self._ledger.close()

    def _terms(self, use: Use, ttl_s: float | None, holder: str, on_ended: OnEnded | None) -> Terms:
        return Terms(use, self.config.lease.ttl_s if ttl_s is None else ttl_s, holder, on_ended)

    def _lease(self, region: str, blocks: Sequence[int] | Int64s, terms: Terms) -> bytes:
        held = self._leases.grant(self._regions.get(region), blocks, terms)
        self._reaper.look()
        return Ticket(self.config.name, self.epoch, held.id).pack()

    # What peers ask, and how they reach us

    def _operations(self) -> Mapping[str, Operation]:
        theirs = [transport.operations() for transport in self._transports.values()]
        ours: dict[str, Operation] = {
            FILL: SlowOperation(self._target.fill),
            NOTIFY: self._take_notification,
            **service.operations(self._leases),
        }
        for operations in theirs:
            ours.update(operations)
        return ours

    def _take_notification(self, peer: PeerInfo, payload: object) -> object:
        return self._inbox.deliver(peer.name, peer.epoch, payload)

    def _pull(self, order: FillOrder) -> Transfer:
        lease = self.accept(order.ticket)
        options = ReadOptions(verify=order.verify)
        transfer = self.read(order.into, order.source, lease, order.timeout_s, options)
        transfer.on_settled(lambda _: lease.release())
        return transfer

    def _overwrite_extents(self, extents: Extents) -> None:
        info = self._regions.get(extents.region).info
        self._ledger.overwrite(info.name, extents.blocks(info.block_bytes))

    def _ask(self, owner: str, operation: str, payload: object) -> object:
        return self._peers.get(owner).control.call(operation, payload, self.config.call_timeout_s)

    def _make_peer(self, info: PeerInfo) -> Peer:
        control = ControlClient(self.config.control(), self._identity, info, self._peers.lost)
        return Peer(info, control, self._transports, self.config.breaker, time.monotonic)

    def _identity(self) -> Identity:
        """Return who we are; a peer may ask before the constructor is through."""
        if not self._ready.wait(self.config.call_timeout_s):
            raise TransferTimedOut(self.config.name, "starting", self.config.call_timeout_s)
        return Identity(self._info, self.metadata())

    def _on_peer(self, identity: Identity) -> None:
        """Somebody has proved who it is: know it too, and end what an older life of it held."""
        name, epoch = identity.peer.name, identity.peer.epoch
        if identity.metadata:
            self.add_peer(identity.metadata)
        self._leases.end_all(
            EndReason.HOLDER_GONE,
            lambda lease: lease.holder == name and 0 < lease.holder_epoch < epoch,
        )

    def _on_stream(self, purpose: str, connection: socket.socket, peer: PeerInfo) -> None:
        transport = self._transports.get(purpose)
        if transport is None:
            connection.close()
        else:
            transport.accept(connection, peer)

    def _describe(self) -> PeerInfo:
        endpoints: dict[str, object] = {CONTROL: self._server.endpoint.pack()}
        for name, transport in self._transports.items():
            endpoint = transport.endpoint()
            if endpoint is not None:
                endpoints[name] = endpoint
        return PeerInfo(self.config.name, self.epoch, host_id(), endpoints)
