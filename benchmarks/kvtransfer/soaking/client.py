"""One thread of the soak: reads and writes at random, and looks at every byte afterwards."""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.kvtransfer.soaking.content import BLOCK_BYTES, Words, block_content
from benchmarks.kvtransfer.soaking.owner import POOL
from benchmarks.kvtransfer.soaking.process import OwnerGone, OwnerProcess
from benchmarks.kvtransfer.soaking.proxy import Proxy
from benchmarks.kvtransfer.soaking.tally import Tally
from stafette.kvtransfer import metadata
from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.control.endpoint import NAME as CONTROL
from stafette.kvtransfer.control.endpoint import Endpoint
from stafette.kvtransfer.errors import InvalidValue, TransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.lease import Lease
from stafette.kvtransfer.posting import ReadOptions
from stafette.kvtransfer.transfer import Transfer

BLOCKS_A_CLIENT = 256
SHARE_BYTES = BLOCKS_A_CLIENT * BLOCK_BYTES

_SENTINEL = np.uint64(0xABABABABABABABAB)
_GRACE_S = 10.0  # the machine may be busy; a hang is for ever
_RAW_VERSION = 1 << 22  # versions from here on are of writes


@dataclass(slots=True)
class Route:
    """An owner, and the proxy through which it is reached, if any."""

    owner: OwnerProcess
    proxy: Proxy | None = None

    def metadata(self) -> bytes:
        """Return what the driver is told of the owner: through a proxy only TCP leads there."""
        read = metadata.decode(self.owner.metadata)
        if self.proxy is None:
            return self.owner.metadata
        real = Endpoint.read(read.peer.endpoints[CONTROL])
        self.proxy.target = (real.host, real.port)
        shown = Endpoint(*self.proxy.address, f"nobody-{real.unix}"[:90]).pack()
        endpoints = {**read.peer.endpoints, CONTROL: shown}
        peer = replace(read.peer, endpoints=endpoints, host_id="another host")
        return metadata.encode(replace(read, peer=peer))


class Client(threading.Thread):
    def __init__(
        self, number: int, agent: Agent, share: Words, routes: Sequence[Route], tally: Tally
    ) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.stopping = threading.Event()
        self._agent = agent
        self._share = share.reshape(BLOCKS_A_CLIENT, -1)
        self._first = number * BLOCKS_A_CLIENT
        self._routes = routes
        self._tally = tally
        self._random = random.Random(number)
        self._quiet = False  # whether the share holds the sentinel, and nobody may write there

    def run(self) -> None:
        while not self.stopping.is_set():
            route = self._random.choice(self._routes)
            try:
                self._agent.add_peer(route.metadata())
                self._look()
                self._read(route) if self._random.random() < 0.8 else self._write(route)
            except TransferError as error:
                self._tally.count_failed(error)
            except (OwnerGone, InvalidValue) as error:  # killed, or forgotten, in between
                self._tally.count_failed(error)
            except Exception as error:  # the soak's finding
                self._tally.note(self._tally.surprises, repr(error))

    def _read(self, route: Route) -> None:
        ticket, blocks, versions = route.owner.ask("grant", self._random.randint(1, 200))
        lease = self._agent.accept(bytes.fromhex(ticket))
        try:
            order = self._random.sample(range(BLOCKS_A_CLIENT), len(blocks))
            self._quiet = False
            transfer = self._agent.read(
                Extents.of_blocks(POOL, [self._first + slot for slot in order], BLOCK_BYTES),
                Extents.of_blocks(POOL, blocks, BLOCK_BYTES),
                lease,
                self._timeout_s(),
                ReadOptions(verify=self._random.random() < 0.2),
            )
            if self._outcome(transfer, "read"):
                self._check(route, order, blocks, versions)
        finally:
            self._leave(lease, route, ticket)

    def _write(self, route: Route) -> None:
        life = route.owner.lives
        ticket, blocks = route.owner.ask("offer", self._random.randint(1, 50))
        lease = self._agent.accept(bytes.fromhex(ticket))
        try:
            version = _RAW_VERSION + self._random.getrandbits(20)
            self._quiet = False
            for slot, block in enumerate(blocks):
                self._share[slot] = block_content(block, version)
            ours = [self._first + slot for slot in range(len(blocks))]
            transfer = self._agent.write(
                Extents.of_blocks(POOL, ours, BLOCK_BYTES),
                Extents.of_blocks(POOL, blocks, BLOCK_BYTES),
                lease,
                self._timeout_s(),
            )
            if self._outcome(transfer, "write") and lease.ended is None:
                kept = route.owner.ask("holds", blocks, version)
                if not kept and lease.ended is None and route.owner.lives == life:
                    self._tally.note(self._tally.wrong, f"a write to {route.owner.name}")
        finally:
            self._leave(lease, route, ticket)

    def _outcome(self, transfer: Transfer, what: str) -> bool:
        """Wait, or cancel; return whether it is done. Afterwards nobody writes any more."""
        if self._random.random() < 0.1:
            self.stopping.wait(self._random.random() * 0.01)
            transfer.cancel()
            with self._tally.lock:
                self._tally.cancelled += 1
        try:
            done = transfer.wait(transfer.timeout_s + _GRACE_S)
            if not done:
                self._tally.note(self._tally.hangs, f"a {what} from {transfer.peer}")
            else:
                self._tally.count_done(what, transfer.total_bytes)
            return done
        finally:
            if not transfer.wait_settled(transfer.timeout_s + _GRACE_S):
                self._tally.note(self._tally.hangs, f"the end of a {what} from {transfer.peer}")
            elif transfer.error is not None:
                self._share[:] = _SENTINEL
                self._quiet = True

    def _look(self) -> None:
        """After a transfer that failed and settled, not one byte may have come."""
        if self._quiet and not (self._share == _SENTINEL).all():
            self._tally.note(self._tally.wrong, f"{self.name}: bytes after the end of a transfer")

    def _check(
        self, route: Route, order: list[int], blocks: list[int], versions: list[int]
    ) -> None:
        for slot, block, version in zip(order, blocks, versions, strict=True):
            if not (self._share[slot] == block_content(block, version)).all():
                self._tally.note(self._tally.wrong, f"block {block} of {route.owner.name}")

    def _leave(self, lease: Lease, route: Route, ticket: str) -> None:
        """Mostly release the lease; now and then leave that to the owner, or to nobody."""
        chance = self._random.random()
        if chance < 0.9:
            lease.release()
        elif chance < 0.95:
            route.owner.ask("revoke", ticket)
        else:
            self._forget(lease)

    def _forget(self, lease: Lease) -> None:
        """As if this process had lost it: no heartbeat comes any more."""
        lease.end("forgotten on purpose")
        self._agent._holder._heartbeats.remove(lease)

    def _timeout_s(self) -> float:
        return self._random.choice((0.02, 0.3, 2.0, 5.0))
