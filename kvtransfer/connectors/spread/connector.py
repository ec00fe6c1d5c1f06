"""The first host's part: it passes on to the others what the scheduler wants of all shares.

A load has ended when its blocks are there on every host; a save is released when every host has
let it go. Steps of an engine end on all its ranks before they end here, so that what is complete
here is complete there.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.connectors.connector import Finish, KvRequest, LoadOrder, Save
from stafette.kvtransfer.connectors.countdown import Countdown
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.connector import P2pConnector
from stafette.kvtransfer.connectors.p2p.messages import PARAMS, Give, Take
from stafette.kvtransfer.connectors.spread.joined import JoinedLoad
from stafette.kvtransfer.connectors.spread.messages import (
    PREFIX,
    Blocks,
    Word,
    pack_params,
    read,
)
from stafette.kvtransfer.errors import (
    KvTransferError,
    MalformedMessage,
    PeerLost,
    TransferError,
)
from stafette.kvtransfer.notifications import Notification

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Awaited:
    """What other hosts have not answered yet."""

    members: set[str]
    answer: Callable[[Word], None]  # for each of them
    broken: Callable[[KvTransferError], None]  # the way to one is, which may still be there


class SpreadConnector(P2pConnector):
    """Its agent is the worker's own; `members` is the metadata of the other hosts', by name.

    What is passed on must have readers that are named: who takes news along gets those of one host.
    """

    name = "spread"

    def __init__(self, agent: Agent, config: P2pConfig, members: Mapping[str, bytes]) -> None:
        super().__init__(agent, replace(config, rank=0, num_ranks=1 + len(members)))
        self.members = tuple(members)
        self.member_agents = list(members.items())
        self._numbers = count(1)
        self._awaited: dict[int, _Awaited] = {}
        self._lock = threading.Lock()
        agent.subscribe(PREFIX, self._heard)
        agent.on_lost(self._lost)

    def add_peer(self, metadata: bytes) -> str:
        name = super().add_peer(metadata)
        self._tell(Word("peer", content=metadata))
        return name

    def finish(self, request: KvRequest, reason: str = "") -> Finish:
        if PARAMS in request.params:
            own = pack_params({PARAMS: request.params[PARAMS]})
            self._tell(Word("finish", words=reason, content=own))
        return super().finish(request, reason)

    def give_up(self, hand_off: str) -> None:
        self._tell(Word("give_up", words=hand_off))
        super().give_up(hand_off)

    def relieve(self) -> bool:
        self._tell(Word("relieve"))
        return super().relieve()

    def start_load(self, order: LoadOrder) -> Load:
        take = Take.find(order.source)  # type: ignore[arg-type]
        if take is None or not order.blocks:
            if take is not None:
                self._tell(Word("give_up", words=take.id))
            return super().start_load(order)
        joined = JoinedLoad(order, 1 + len(self.members))
        here = super().start_load(order)
        number = self._await(
            lambda word: joined.part(word.value, _shortfall(word)), joined.load.fail
        )
        here.on_settled(lambda load: joined.part(load.num_arrived, load.error))
        where = order.first, order.hashes, order.blocks
        blocks = Blocks("load", number, *where, take.params())
        for piece in blocks.pieces():
            self._send(piece.pack())
        joined.load.on_ended(lambda _: self._cancel(number, here))
        return joined.load

    def save_layer(self, layer: int, save: Save) -> None:
        if not self.completes(layer):
            return
        if Give.find(save.params) is None:
            save.release()
            return
        own: dict[str, object] = {PARAMS: save.params[PARAMS]}
        pieces = list(Blocks("save", 0, save.first, save.hashes, save.blocks, own).pieces())
        countdown = Countdown(1 + len(pieces) * len(self.members), save.release)
        for piece in pieces:
            number = self._await(lambda _: countdown.done())
            self._send(replace(piece, number=number).pack())
        super().save_layer(layer, replace(save, release=countdown.done))

    def close(self) -> None:
        super().close()
        self.agent.unsubscribe(PREFIX)
        for member in self.members:
            self._settle(member)

    def _await(
        self,
        answer: Callable[[Word], None],
        broken: Callable[[KvTransferError], None] = lambda error: None,
    ) -> int:
        number = next(self._numbers)
        with self._lock:
            self._awaited[number] = _Awaited(set(self.members), answer, broken)
        return number

    def _cancel(self, number: int, here: Load) -> None:
        here.cancel()
        with self._lock:
            under_way = number in self._awaited
        if under_way:
            self._tell(Word("cancel", number))

    def _tell(self, word: Word) -> None:
        self._send(word.pack())

    def _send(self, payload: bytes) -> None:
        for member in self.members:
            try:
                self.agent.notify(member, payload)
            except KvTransferError as error:
                _log.warning("host %s of this worker cannot be told: %s", member, error)
                self._settle(member)

    # What comes, in threads of the agent: nothing here may block.

    def _heard(self, notification: Notification) -> None:
        try:
            word = read(notification.payload)
        except MalformedMessage as error:
            _log.warning("peer %s sends what is no answer: %s", notification.peer, error)
            return
        if isinstance(word, Word) and notification.peer in self.members:
            self._answered(notification.peer, word.number, word)

    def _answered(self, member: str, number: int, word: Word) -> None:
        with self._lock:
            awaited = self._awaited.get(number)
            if awaited is None or member not in awaited.members:
                return
            awaited.members.discard(member)
            if not awaited.members:
                del self._awaited[number]
        awaited.answer(word)

    def _lost(self, peer: str, for_good: bool) -> None:
        if peer not in self.members:
            return
        if for_good:
            self._settle(peer)
            return
        with self._lock:
            waiting = [each for each in self._awaited.values() if peer in each.members]
        for awaited in waiting:
            awaited.broken(PeerLost(peer, "the way to a host of this worker is broken"))

    def _settle(self, member: str) -> None:
        """It has ended: nobody reads or writes there any more."""
        with self._lock:
            waiting = [n for n, each in self._awaited.items() if member in each.members]
        for number in waiting:
            self._answered(member, number, Word("lost", number, words="that host is gone"))


def _shortfall(word: Word) -> KvTransferError | None:
    if word.kind == "lost":
        return PeerLost("a host of this worker", word.words)
    return TransferError(word.words) if word.words else None
