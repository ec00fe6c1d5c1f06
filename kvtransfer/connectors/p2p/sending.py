"""The owner's side: blocks that are ready are leased to their readers, who are told at once."""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.connectors.connector import Finish, Save
from stafette.kvtransfer.connectors.countdown import Countdown
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.messages import (
    MAX_PIECE_BLOCKS,
    Ended,
    Give,
    Piece,
    Take,
)
from stafette.kvtransfer.errors import KvTransferError

_log = logging.getLogger(__name__)
_ANYBODY = ""  # in place of a reader: who comes first with the ticket


@dataclass(slots=True, eq=False)
class _Outgoing:
    """What was passed on of one hand-off."""

    give: Give
    end: int = 0  # a place in the prompt
    broken: str = (
        ""  # why nothing more is passed on: a reader has no use for what lies behind a gap
    )
    finished: bool = False
    num_leases: int = 0  # that live
    tickets: list[bytes] = field(default_factory=list)
    news: list[bytes] = field(default_factory=list)  # nobody was told


@dataclass(slots=True, eq=False)
class _Granted:
    """One lease; it may end before its ticket is known here."""

    ticket: bytes = b""
    ended: bool = False


class Sender:
    """Any thread may call it; leases end in others."""

    def __init__(self, agent: Agent, config: P2pConfig) -> None:
        self._agent = agent
        self._config = config
        self._regions: list[str] = []
        self._outgoing: dict[str, _Outgoing] = {}  # by hand-off
        self._granted: dict[bytes, float] = {}  # when each lease that lives was, the oldest first
        self._lock = threading.Lock()

    def register(self, regions: list[str]) -> None:
        self._regions = regions

    def save(self, give: Give, save: Save) -> None:
        """Lease blocks, each piece to every reader, and tell of it; release them after the last."""
        with self._lock:
            out = self._outgoing.setdefault(give.id, _Outgoing(give))
        if out.broken:
            save.release()
            return
        todo = [(p, r) for p in self._pieces(give, save) for r in give.readers or (_ANYBODY,)]
        countdown = Countdown(len(todo) * len(self._regions), save.release)
        for piece, reader in todo:
            tickets = self._lease(out, piece, reader, countdown)
            if len(tickets) == len(self._regions):
                self._tell(out, replace(piece, tickets=tuple(tickets)), reader)
            else:
                self._revoke(tickets)

    def finish(self, give: Give, reason: str) -> Finish:
        """Tell readers that this was all."""
        with self._lock:
            out = self._outgoing.setdefault(give.id, _Outgoing(give))
            again, out.finished = out.finished, True
            keep = out.num_leases > 0
            if not keep:
                del self._outgoing[give.id]
        if not again:
            for reader in give.readers:
                self._notify(reader, Ended(give.id, out.end, out.broken or reason).pack())
        if give.readers:
            return Finish(keep)
        take = Take(give.id, (self._agent.config.name,), out.end, tuple(out.news))
        return Finish(keep, take.params())

    def relieve(self) -> bool:
        """Take back the oldest lease, if its reader has had time enough."""
        with self._lock:
            ticket, since = next(iter(self._granted.items()), (b"", 0.0))
        if not ticket or time.monotonic() - since < self._config.grace_s:
            return False
        _log.warning("a lease is taken back: its reader had %g s", self._config.grace_s)
        self._revoke([ticket])
        return True

    def close(self) -> None:
        with self._lock:
            tickets = [ticket for out in self._outgoing.values() for ticket in out.tickets]
        self._revoke(tickets)

    def _pieces(self, give: Give, save: Save) -> Iterator[Piece]:
        rank, num_ranks = self._config.rank, self._config.num_ranks
        for start in range(0, len(save.blocks), MAX_PIECE_BLOCKS):
            some = slice(start, start + MAX_PIECE_BLOCKS)
            hashes, blocks = save.hashes[some], save.blocks[some]
            yield Piece(give.id, save.first + start, hashes, blocks, (), rank, num_ranks)

    def _lease(
        self, out: _Outgoing, piece: Piece, reader: str, countdown: Countdown
    ) -> list[bytes]:
        """Return the tickets that could be had; the countdown hears of each share in any case."""

        tickets: list[bytes] = []
        for region in self._regions:
            with self._lock:
                out.num_leases += 1
            lease = _Granted()
            ended = partial(self._lease_ended, out, lease, countdown)
            try:
                ttl_s = self._config.lease_ttl_s
                ticket = self._agent.grant(region, piece.blocks, ttl_s, reader, ended)
            except KvTransferError as error:
                _log.warning("blocks of %s are not passed on: %s", out.give.id, error)
                out.broken = str(error)
                ended(error)
                continue
            tickets.append(ticket)
            self._note(lease, ticket)
        return tickets

    def _note(self, lease: _Granted, ticket: bytes) -> None:
        with self._lock:
            if not lease.ended:
                lease.ticket = ticket
                self._granted[ticket] = time.monotonic()

    def _tell(self, out: _Outgoing, piece: Piece, reader: str) -> None:
        news = piece.pack()
        if reader != _ANYBODY and not self._notify(reader, news):
            self._revoke(list(piece.tickets))
            out.broken = f"reader {reader} could not be told"
            return
        with self._lock:
            out.tickets += piece.tickets
            out.end = max(out.end, piece.end)
            if reader == _ANYBODY:
                out.news.append(news)

    def _notify(self, reader: str, news: bytes) -> bool:
        try:
            self._agent.notify(reader, news)
        except KvTransferError as error:
            _log.warning("reader %s cannot be told of blocks: %s", reader, error)
            return False
        return True

    def _lease_ended(
        self, out: _Outgoing, lease: _Granted, countdown: Countdown, _: object
    ) -> None:
        with self._lock:
            lease.ended = True
            self._granted.pop(lease.ticket, None)
            out.num_leases -= 1
            if out.finished and not out.num_leases:
                self._outgoing.pop(out.give.id, None)
        countdown.done()

    def _revoke(self, tickets: list[bytes]) -> None:
        for ticket in tickets:
            self._agent.revoke(ticket)
