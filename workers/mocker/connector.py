"""The hand-over between mock workers: real parameters, news and books; bytes that only take time.

The owner of blocks keeps them until each reader has said that it needs them no more, or its lease
is over. A reader's pieces arrive one after the other, as its way in has room for their bytes.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.connectors.connector import Finish, KvConnector, KvRequest, LoadOrder, Save
from stafette.kvtransfer.connectors.countdown import Countdown
from stafette.kvtransfer.connectors.loading import Load, failed_load
from stafette.kvtransfer.connectors.p2p.early import EarlyNews
from stafette.kvtransfer.connectors.p2p.messages import (
    MAX_PIECE_BLOCKS,
    Ended,
    Give,
    Piece,
    Take,
)
from stafette.kvtransfer.errors import (
    Incompatible,
    InvalidValue,
    PeerLost,
    TransferError,
    TransferTimedOut,
)
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.workers.mocker.agenda import Agenda, Appointment
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.news import News, Read, Wire

_log = logging.getLogger(__name__)
_REMEMBERED = 4_096  # hand-offs that were given up


@dataclass(slots=True, eq=False)
class _Incoming:
    """A load under way."""

    take: Take
    load: Load
    progress_at: float
    overdue_at: float
    look: Appointment | None = None


@dataclass(slots=True, eq=False)
class _Held:
    """A piece that a reader may still be reading."""

    countdown: Countdown
    lease: Appointment
    since: float


@dataclass(slots=True)
class MovedCounters:
    nbytes: int = 0
    pieces: int = 0  # that have arrived
    leases: int = 0  # that live
    granted: int = 0
    expired: int = 0


class MockConnector(KvConnector):
    """Used by whoever steps the worker. What comes from other workers comes by `hear`."""

    name = "mock"

    def __init__(
        self, config: MockerConfig, agenda: Agenda, clock: Callable[[], float], wire: Wire
    ) -> None:
        self.counters = MovedCounters()
        self._config = config
        self._limits = config.p2p
        self._agenda = agenda
        self._clock = clock
        self._wire = wire
        self._ttl_s = config.p2p.lease_ttl_s or LeaseConfig().ttl_s
        self._incoming: dict[str, _Incoming] = {}  # by hand-off
        self._held: dict[tuple[str, str, int], _Held] = {}  # by reader, hand-off, first block
        self._passed: dict[str, int] = {}  # by hand-off: where in the prompt it stands
        self._early = EarlyNews(config.p2p.early_s, config.p2p.max_early, self._drop_early)
        self._early_look: Appointment | None = None
        self._given_up: OrderedDict[str, None] = OrderedDict()
        self._writing: dict[Load, set[Appointment]] = {}  # pieces that are arriving
        self._way_in_free_at = 0.0

    @classmethod
    def of(cls, agent: Agent | None, config: object) -> "KvConnector":
        raise InvalidValue("connector", cls.name, "is made by a mock worker, and moves no bytes")

    # What comes from other workers

    def hear(self, peer: str, news: News) -> None:
        if isinstance(news, Read):
            self._let_go((peer, news.handoff, news.first))
            return
        incoming = self._incoming.get(news.handoff)
        if incoming is None:
            self._early.add((peer, news), self._clock())
            self._expire_early()
        else:
            self._take_in(incoming, peer, news)

    def lost(self, peer: str) -> None:
        """A worker is gone: nothing comes from it, nothing is read by it."""
        for incoming in list(self._incoming.values()):
            if peer in incoming.take.sources:
                incoming.load.fail(PeerLost(peer, "it has ended while its blocks were awaited"))
        for key in [key for key in self._held if key[0] == peer]:
            self._let_go(key)

    def give_up(self, hand_off: str) -> None:
        """Nothing more will come of a hand-off; what has come stays usable. May come early."""
        self._given_up[hand_off] = None
        if len(self._given_up) > _REMEMBERED:
            self._given_up.popitem(last=False)
        self._forget(hand_off)

    # The scheduler's side

    def check(self, params: Mapping[str, object]) -> None:
        Take.find(params)
        give = Give.find(params)
        if give is not None and not give.readers:
            raise InvalidValue("p2p.give.readers", (), "must name who is told, with mock workers")

    def matched_tokens(self, request: KvRequest, num_held: int) -> int:
        take = Take.find(request.params)
        if take is None:
            return 0
        return take.tokens_beyond(len(request.hashes), request.block_size, num_held)

    def begin(self, request: KvRequest, first: int, blocks: Sequence[int]) -> LoadOrder:
        return LoadOrder.of(request, first, blocks, dict(request.params))

    def finish(self, request: KvRequest, reason: str = "") -> Finish:
        take, give = Take.find(request.params), Give.find(request.params)
        if take is not None:
            self._forget(take.id)
        if give is not None:
            end = self._passed.pop(give.id, 0)
            for reader in give.readers:
                self._wire.tell(reader, Ended(give.id, end, reason))
        return Finish(keep=bool(self._held))

    def relieve(self) -> bool:
        key = next(iter(self._held), None)
        if key is None or self._clock() - self._held[key].since < self._limits.grace_s:
            return False
        self._let_go(key)
        return True

    # The worker's side

    def start_load(self, order: LoadOrder) -> Load:
        take = Take.find(order.source)  # type: ignore[arg-type]  # what `begin` put there
        if take is None:
            return failed_load(order, "the request says nothing of where its blocks are")
        if not order.blocks:
            self._forget(take.id)
            return Load(order)
        if take.id in self._incoming or take.id in self._given_up:
            return failed_load(order, f"hand-off {take.id} is under way, or over")
        load, now = Load(order), self._clock()
        incoming = _Incoming(take, load, now, now + self._limits.load_timeout_s)
        self._incoming[take.id] = incoming
        load.on_ended(lambda _: self._forget(take.id))
        self._look_after(incoming)
        for peer in take.sources:
            self._wire.probe(peer)
        for peer, news in self._early.take(take.id):
            self._take_in(incoming, peer, news)
        return load

    def save_layer(self, layer: int, save: Save) -> None:
        give = Give.find(save.params)
        if give is None:
            save.release()
            return
        pieces = range(0, len(save.blocks), MAX_PIECE_BLOCKS)
        countdown = Countdown(len(pieces) * len(give.readers), save.release)
        for start in pieces:
            some = slice(start, start + MAX_PIECE_BLOCKS)
            piece = Piece(
                give.id, save.first + start, save.hashes[some], save.blocks[some], tickets=()
            )
            self._passed[give.id] = piece.end
            for reader in give.readers:
                self._lend(reader, piece, countdown)

    def close(self) -> None:
        for handoff in list(self._incoming):
            self._forget(handoff)
        for load, arrivals in list(self._writing.items()):
            for arrival in arrivals:
                arrival.cancel()
                load.end_write()
        self._early.clear()
        for key in list(self._held):
            self._let_go(key)

    # As an owner

    def _lend(self, reader: str, piece: Piece, countdown: Countdown) -> None:
        key = (reader, piece.handoff, piece.first)
        now = self._clock()
        lease = self._agenda.at(now + self._ttl_s, partial(self._expire, key))
        self._held[key] = _Held(countdown, lease, now)
        self.counters.leases += 1
        self.counters.granted += 1
        if not self._wire.tell(reader, piece):
            _log.warning("reader %s cannot be told of blocks: nobody of that name", reader)
            self._let_go(key)

    def _expire(self, key: tuple[str, str, int]) -> None:
        self.counters.expired += 1
        self._let_go(key)

    def _let_go(self, key: tuple[str, str, int]) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self.counters.leases -= 1
            held.lease.cancel()
            held.countdown.done()

    # As a reader

    def _take_in(self, incoming: _Incoming, peer: str, news: Piece | Ended) -> None:
        load, order = incoming.load, incoming.load.order
        incoming.progress_at = self._clock()
        if peer not in incoming.take.sources:
            _log.warning("peer %s sends news of hand-off %s, not its own", peer, news.handoff)
        elif isinstance(news, Ended):
            if news.end < order.end:
                load.limit(news.end, TransferError(f"{peer} ended early: {news.reason}"))
        elif news.end <= order.first or news.first >= order.end:
            self._refuse(peer, news)
        elif _hashes_differ(order, news):
            load.fail(Incompatible(peer, "block hashes", "other ones", "those of another prompt"))
            self._refuse(peer, news)
        elif not load.begin_write():
            self._refuse(peer, news)
        else:
            self._fetch(incoming, peer, news)

    def _fetch(self, incoming: _Incoming, peer: str, piece: Piece) -> None:
        """Let a piece arrive when its bytes could have; its blocks are written until then."""
        order, config = incoming.load.order, self._config
        first, end = max(order.first, piece.first), min(order.end, piece.end)
        nbytes, now = (end - first) * config.block_bytes, self._clock()
        takes_s = config.profile.transfer_seconds(nbytes) / config.speedup
        self._way_in_free_at = max(now, self._way_in_free_at) + takes_s
        latency_s = config.profile.transfer_latency_ms / 1e3 / config.speedup

        def arrived() -> None:
            writing.discard(arrival)
            incoming.progress_at = self._clock()
            self.counters.nbytes += nbytes
            self.counters.pieces += 1
            incoming.load.arrive(first, end)
            incoming.load.end_write()
            self._refuse(peer, piece)

        arrival = self._agenda.at(self._way_in_free_at + latency_s, arrived)
        writing = self._writing.setdefault(incoming.load, set())
        writing.add(arrival)
        incoming.load.on_settled(self._settled)

    def _settled(self, load: Load) -> None:
        self._writing.pop(load, None)

    def _refuse(self, peer: str, piece: Piece) -> None:
        """Tell a piece's owner that it is needed no more."""
        self._wire.tell(peer, Read(piece.handoff, piece.first))

    def _forget(self, handoff: str) -> None:
        """End the load, if it has not ended; refuse what comes for it from now on."""
        incoming = self._incoming.pop(handoff, None)
        self._early.end(handoff)
        if incoming is not None:
            if incoming.look is not None:
                incoming.look.cancel()
            incoming.load.cancel()

    def _look_after(self, incoming: _Incoming) -> None:
        """End a load that is overdue, or of which nothing arrives."""
        load, limits, now = incoming.load, self._limits, self._clock()
        stalled_at = incoming.progress_at + limits.stall_timeout_s
        sources = ", ".join(incoming.take.sources)
        if now >= incoming.overdue_at:
            load.fail(TransferTimedOut(sources, "a load", limits.load_timeout_s))
        elif now >= stalled_at:
            load.fail(TransferTimedOut(sources, "waiting for blocks", limits.stall_timeout_s))
        else:
            due = min(stalled_at, incoming.overdue_at)
            incoming.look = self._agenda.at(due, partial(self._look_after, incoming))

    def _drop_early(self, early: tuple[str, Piece | Ended]) -> None:
        peer, news = early
        if isinstance(news, Piece):
            self._refuse(peer, news)

    def _expire_early(self) -> None:
        due = self._early.expire(self._clock())
        if self._early_look is not None:
            self._early_look.cancel()
        self._early_look = None if due is None else self._agenda.at(due, self._expire_early)


def _hashes_differ(order: LoadOrder, piece: Piece) -> bool:
    first, end = max(order.first, piece.first), min(order.end, piece.end)
    ours = order.hashes[first - order.first : end - order.first]
    return ours != piece.hashes[first - piece.first : end - piece.first]
