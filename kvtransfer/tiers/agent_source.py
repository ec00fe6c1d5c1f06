"""The reader's side of a peer tier: asks who is said to have blocks, reads them under a lease."""

import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.errors import (
    Incompatible,
    InvalidValue,
    KvTransferError,
    MalformedMessage,
    TransferTimedOut,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.lease import Lease
from stafette.kvtransfer.notifications import Notification
from stafette.kvtransfer.tiers.host_share import REGION
from stafette.kvtransfer.tiers.peer_messages import ANSWER, Answer, Question
from stafette.kvtransfer.tiers.source import BlockSource

_log = logging.getLogger(__name__)
_SETTLE_S = 10.0


@dataclass(slots=True)
class _Waiting:
    peer: str
    arrived: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None


class AgentSource(BlockSource):
    """`hint` tells it who has what, as a router knows it. Reads into a `HostShare`'s region."""

    def __init__(
        self, agent: Agent, block_bytes: int, region: str = REGION, max_hints: int = 1 << 20
    ) -> None:
        if max_hints < 1:
            raise InvalidValue("max_hints", max_hints, "must be at least 1")
        self._agent = agent
        self._block_bytes = block_bytes
        self._region = region
        self._max_hints = max_hints
        self._hints: OrderedDict[bytes, str] = OrderedDict()  # the oldest first
        self._numbers = count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._lock = threading.Lock()
        agent.subscribe(ANSWER, self._answered)

    def hint(self, peer: str, hashes: Sequence[bytes]) -> None:
        """A peer has these blocks, as far as somebody knows."""
        with self._lock:
            for key in hashes:
                self._hints[key] = peer
                self._hints.move_to_end(key)
            while len(self._hints) > self._max_hints:
                self._hints.popitem(last=False)

    def locate(self, hashes: Sequence[bytes]) -> Collection[bytes]:
        with self._lock:
            return [key for key in hashes if key in self._hints]

    def fetch(self, hashes: Sequence[bytes], rows: Sequence[int], timeout_s: float) -> list[bool]:
        deadline, there = time.monotonic() + timeout_s, [False] * len(hashes)
        for peer, places in self._by_peer(hashes).items():
            try:
                keys = [hashes[place] for place in places]
                arrived = self._fetch_from(peer, keys, [rows[p] for p in places], deadline)
            except KvTransferError as error:
                _log.warning("%d blocks of peer %s did not come: %s", len(places), peer, error)
                arrived = set()
            for number, place in enumerate(places):
                there[place] = number in arrived
        self._forget([key for key, came in zip(hashes, there, strict=True) if not came])
        return there

    def close(self) -> None:
        self._agent.unsubscribe(ANSWER)

    def _by_peer(self, hashes: Sequence[bytes]) -> dict[str, list[int]]:
        places: defaultdict[str, list[int]] = defaultdict(list)
        with self._lock:
            for place, key in enumerate(hashes):
                if key in self._hints:
                    places[self._hints[key]].append(place)
        return places

    def _forget(self, hashes: Sequence[bytes]) -> None:
        with self._lock:
            for key in hashes:
                self._hints.pop(key, None)

    def _fetch_from(
        self, peer: str, hashes: Sequence[bytes], rows: Sequence[int], deadline: float
    ) -> set[int]:
        """Return the places of the hashes whose blocks have arrived."""
        answer = self._ask(peer, hashes, deadline)
        if not answer.ticket:
            return set()
        lease = self._agent.accept(answer.ticket)
        try:
            self._check(peer, answer, lease, len(hashes))
            self._read(answer, [rows[place] for place in answer.places], lease, deadline)
        finally:
            lease.release()
        return set(answer.places)

    def _check(self, peer: str, answer: Answer, lease: Lease, num_asked: int) -> None:
        """Raise for an answer that does not fit the question."""
        theirs = lease.region.block_bytes
        if theirs != self._block_bytes:
            raise Incompatible(peer, "block_bytes", str(self._block_bytes), str(theirs))
        if lease.owner != peer or max(answer.places, default=0) >= num_asked:
            raise MalformedMessage("answer", f"blocks of {peer} that were asked for")

    def _ask(self, peer: str, hashes: Sequence[bytes], deadline: float) -> Answer:
        number, waiting = next(self._numbers), _Waiting(peer)
        with self._lock:
            self._waiting[number] = waiting
        try:
            left_s = max(1e-3, deadline - time.monotonic())
            self._agent.notify(peer, Question(number, tuple(hashes)).pack(), left_s)
            waiting.arrived.wait(left_s)
        finally:
            with self._lock:
                del self._waiting[number]
        if waiting.answer is None:
            raise TransferTimedOut(peer, "asking for blocks", left_s)
        return waiting.answer

    def _answered(self, notification: Notification) -> None:
        answer = Answer.read(notification.payload)
        with self._lock:
            waiting = self._waiting.get(answer.number)
            if waiting is not None and waiting.peer == notification.peer:
                waiting.answer = answer
                waiting.arrived.set()
                return
        if answer.ticket:  # too late
            self._agent.reject(answer.ticket)

    def _read(self, answer: Answer, rows: Sequence[int], lease: Lease, deadline: float) -> None:
        into = Extents.of_blocks(self._region, rows, self._block_bytes)
        source = Extents.of_blocks(lease.region.name, answer.rows, self._block_bytes)
        left_s = max(1e-3, deadline - time.monotonic())
        transfer = self._agent.read(into, source, lease, left_s)
        try:
            transfer.wait()
        finally:
            while not transfer.wait_settled(_SETTLE_S):  # until then the rows belong to nobody
                _log.error("a read of peer %s does not end", lease.owner)
