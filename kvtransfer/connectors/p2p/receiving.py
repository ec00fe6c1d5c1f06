"""The reader's side: waits for news of its hand-offs, fetches what is ready, watches the time."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.connectors.connector import LoadOrder
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.early import EarlyNews, News
from stafette.kvtransfer.connectors.p2p.fetching import Fetch, LocalShare, reject
from stafette.kvtransfer.connectors.p2p.messages import (
    PREFIX,
    Ended,
    Piece,
    Take,
    read_news,
)
from stafette.kvtransfer.errors import (
    Incompatible,
    KvTransferError,
    MalformedMessage,
    PeerLost,
    TransferError,
    TransferTimedOut,
)
from stafette.kvtransfer.leases.reaper import Reaper
from stafette.kvtransfer.notifications import Notification

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Incoming:
    """A load under way, and what has come for it."""

    take: Take
    load: Load
    overdue_at: float  # the end of the whole
    progress_at: float  # the last block, or news of one
    heard_at: float  # the last sign of life
    num_arrived: int = 0  # as of then
    parts: dict[tuple[int, int], dict[int, Piece]] = field(default_factory=dict)  # by rank
    claimed: set[int] = field(default_factory=set)  # places that a fetch writes, or has written

    def claim(self, first: int, end: int) -> range:
        """Return those of some places that are written from now on: none is written twice.

        What has arrived may be in use already, and must not be touched again.
        """
        order = self.load.order
        wanted = range(max(first, order.first), min(end, order.end))
        fresh = [place for place in wanted if place not in self.claimed]
        if not fresh or fresh[-1] - fresh[0] + 1 != len(fresh):
            return range(0)
        self.claimed.update(fresh)
        return range(fresh[0], fresh[-1] + 1)


class Receiver:
    """Any thread may call it. Questions to owners wait in threads of its own."""

    def __init__(self, agent: Agent, config: P2pConfig) -> None:
        self._agent = agent
        self._config = config
        self._shares: list[LocalShare] = []
        self._incoming: dict[str, _Incoming] = {}  # by hand-off
        self._early = EarlyNews(config.early_s, config.max_early, self._refuse)
        self._closed = False
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(config.threads, "p2p-fetch")
        self._reaper = Reaper(self._expire)
        agent.subscribe(PREFIX, self._heard)
        agent.on_lost(self._lost)

    def register(self, shares: list[LocalShare]) -> None:
        self._shares = shares

    def start(self, order: LoadOrder, take: Take) -> Load:
        """Fetch what there is of a hand-off, and what comes."""
        load, now = Load(order), time.monotonic()
        incoming = _Incoming(take, load, now + self._config.load_timeout_s, now, now)
        with self._lock:
            if self._closed or take.id in self._incoming or self._early.is_over(take.id):
                load.fail(TransferError(f"hand-off {take.id} is under way, or over"))
                return load
            self._incoming[take.id] = incoming
            early = self._early.take(take.id)
        load.on_ended(lambda _: self.forget(take.id))
        for source in take.sources:
            self._submit(self._probe, source)
        for peer, news in (*early, *_brought(incoming)):
            self._take_in(incoming, peer, news)
        self._reaper.look()
        return load

    def forget(self, handoff: str) -> None:
        """End the load, if it has not ended; refuse what comes for it from now on."""
        with self._lock:
            incoming = self._incoming.pop(handoff, None)
            self._early.end(handoff)
        if incoming is not None:
            incoming.load.cancel()
            for piece in [p for part in incoming.parts.values() for p in part.values()]:
                self._refuse(("", piece))

    def close(self) -> None:
        """Safe to call twice."""
        with self._lock:
            self._closed = True
            handoffs = list(self._incoming)
            self._early.clear()
        for handoff in handoffs:
            self.forget(handoff)
        self._agent.unsubscribe(PREFIX)
        self._reaper.close()
        self._executor.shutdown()

    # What comes, in threads of the agent: nothing here may block.

    def _heard(self, notification: Notification) -> None:
        try:
            news = read_news(notification.payload)
        except MalformedMessage as error:
            _log.warning("peer %s sends what is no news: %s", notification.peer, error)
            return
        with self._lock:
            incoming = self._incoming.get(news.handoff)
            if incoming is None and not self._closed:
                self._early.add((notification.peer, news), time.monotonic())
        if incoming is None:
            self._reaper.look()
        else:
            self._take_in(incoming, notification.peer, news)

    def _lost(self, peer: str, for_good: bool) -> None:
        with self._lock:
            hit = [i for i in self._incoming.values() if peer in i.take.sources]
        for incoming in hit if for_good else ():
            incoming.load.fail(PeerLost(peer, "it has ended while its blocks were awaited"))
        if hit and not for_good:
            self._submit(self._probe, peer)

    def _take_in(self, incoming: _Incoming, peer: str, news: Piece | Ended) -> None:
        load, order = incoming.load, incoming.load.order
        incoming.progress_at = incoming.heard_at = time.monotonic()
        if peer not in incoming.take.sources:
            _log.warning("peer %s sends news of hand-off %s, not its own", peer, news.handoff)
        elif isinstance(news, Ended):
            if news.end < order.end:
                load.limit(news.end, TransferError(f"{peer} ended early: {news.reason}"))
        elif news.end <= order.first or news.first >= order.end:
            self._refuse((peer, news))
        elif _hashes_differ(order, news):
            load.fail(Incompatible(peer, "block hashes", "other ones", "those of another prompt"))
            self._refuse((peer, news))
        else:
            self._collect(incoming, news)

    def _collect(self, incoming: _Incoming, piece: Piece) -> None:
        """Fetch a piece when all ranks that hold a share of its blocks have sent theirs."""
        with self._lock:
            part = incoming.parts.setdefault((piece.first, piece.end), {})
            sent_again = piece.rank in part
            part.setdefault(piece.rank, piece)
            complete = len(part) == piece.num_ranks
            if complete:
                del incoming.parts[piece.first, piece.end]
            places = incoming.claim(piece.first, piece.end) if complete else range(0)
        if places:
            pieces = [part[rank] for rank in sorted(part)]
            fetch = Fetch(self._agent, incoming.load, pieces, places)
            self._submit(fetch.start, self._shares, self._config.read_timeout_s)
        elif sent_again:
            self._refuse(("", piece))
        elif complete:
            for each in part.values():
                self._refuse(("", each))

    def _refuse(self, news: News) -> None:
        if isinstance(news[1], Piece):
            for ticket in news[1].tickets:
                reject(self._agent, ticket)

    # What takes time

    def _submit(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._executor.submit(function, *arguments).add_done_callback(_log_failure)
        except RuntimeError:
            _log.debug("closed meanwhile: all loads have ended")

    def _probe(self, peer: str) -> None:
        """Find out whether a source is there, before something is awaited of it for long."""
        if peer not in self._agent.peers():
            return  # it will be known when its first news come
        try:
            self._agent.connect(peer)
        except KvTransferError as error:
            with self._lock:
                hit = [i.load for i in self._incoming.values() if peer in i.take.sources]
            for load in hit:
                load.fail(error)

    def _expire(self) -> float | None:
        """End the loads that are overdue; return when the next may be."""
        now = time.monotonic()
        with self._lock:
            due = [self._early.expire(now)]
            incoming = list(self._incoming.values())
        for each in incoming:
            due.append(self._look_at(each, now))
        return min((when for when in due if when is not None), default=None)

    def _look_at(self, incoming: _Incoming, now: float) -> float | None:
        load, config = incoming.load, self._config
        if load.num_arrived > incoming.num_arrived:
            incoming.num_arrived = load.num_arrived
            incoming.progress_at = incoming.heard_at = now
        stalled_at = incoming.progress_at + config.stall_timeout_s
        sources = ", ".join(incoming.take.sources)
        if now >= incoming.overdue_at:
            load.fail(TransferTimedOut(sources, "a load", config.load_timeout_s))
        elif now >= stalled_at:
            load.fail(TransferTimedOut(sources, "waiting for blocks", config.stall_timeout_s))
        elif now >= incoming.heard_at + config.silence_s:
            incoming.heard_at = now + config.answer_timeout_s  # until then it may answer
            for source in incoming.take.sources:
                self._submit(self._ask_after, source, incoming)
        ask_at = incoming.heard_at + config.silence_s
        return None if load.ended else min(stalled_at, incoming.overdue_at, ask_at)

    def _ask_after(self, peer: str, incoming: _Incoming) -> None:
        """One that computes, or has others before us, answers; one that hangs does not."""
        if incoming.load.ended or peer not in self._agent.peers():
            return
        try:
            self._agent.ping(peer, self._config.answer_timeout_s)
        except KvTransferError as error:
            incoming.load.fail(error)


def _hashes_differ(order: LoadOrder, piece: Piece) -> bool:
    first, end = max(order.first, piece.first), min(order.end, piece.end)
    ours = order.hashes[first - order.first : end - order.first]
    return ours != piece.hashes[first - piece.first : end - piece.first]


def _brought(incoming: _Incoming) -> list[News]:
    """Return the news that came along with the request."""
    take = incoming.take
    try:
        return [(take.sources[0], read_news(news)) for news in take.news]
    except (IndexError, MalformedMessage) as error:
        incoming.load.fail(TransferError(f"the news of hand-off {take.id}: {error}"))
        return []


def _log_failure(future: "Future[None]") -> None:
    error = future.exception() if not future.cancelled() else None
    if error is not None:
        _log.error("a fetch failed in a way that nobody expected", exc_info=error)
