"""The owner's side of a peer tier: shows the host pool to peers, and leases them what they ask for.

Blocks that are on disk are brought to the host first. A leased block is pinned, so it stays where
the reader reads it until the lease ends.
"""

import logging

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.notifications import Notification
from stafette.kvtransfer.tiers.peer_messages import ASK, Answer, Question
from stafette.kvtransfer.tiers.store import TieredStore

_log = logging.getLogger(__name__)
REGION = "host-tier"


class HostShare:
    """Lives as long as the store and the agent; close it before either of them."""

    def __init__(
        self, agent: Agent, store: TieredStore, region: str = REGION, lease_s: float = 30.0
    ) -> None:
        self.asked = 0  # blocks
        self.leased = 0
        self._agent = agent
        self._store = store
        self._region = region
        self._lease_s = lease_s
        agent.register(region, store.host_memory, block_bytes=store.block_bytes)
        store.tell_overwritten(lambda rows: agent.overwrite(region, rows))
        agent.subscribe(ASK, self._asked)

    def close(self) -> None:
        """Withdraw the pool: all leases on it end."""
        self._agent.unsubscribe(ASK)
        self._store.tell_overwritten(None)
        self._agent.deregister(self._region)

    def _asked(self, notification: Notification) -> None:
        question, peer = Question.read(notification.payload), notification.peer
        self.asked += len(question.hashes)
        found = self._store.lookup(question.hashes)
        if found.num_on("disk"):
            job = self._store.preheat(question.hashes)
            job.on_done(lambda _: self._answer(peer, question))
        else:
            self._answer(peer, question)

    def _answer(self, peer: str, question: Question) -> None:
        try:
            answer = self._lease(peer, question)
            self._agent.notify(peer, answer.pack())
        except KvTransferError as error:  # the peer is gone, or everything is closed
            _log.info("%s gets no answer: %s", peer, error)

    def _lease(self, peer: str, question: Question) -> Answer:
        pin = self._store.pin_each(question.hashes)
        if not pin.rows:
            return Answer(question.number, b"")
        try:
            ticket = self._agent.grant(
                self._region, pin.rows, self._lease_s, peer, lambda _: pin.release()
            )
        except BaseException:
            pin.release()
            raise
        self.leased += len(pin.rows)
        where = {key: place for place, key in enumerate(question.hashes)}
        return Answer(question.number, ticket, tuple(where[key] for key in pin.hashes), pin.rows)
