"""The connector between engines: the one passes blocks on as they are done, the other pulls them.

Every process can do both. Only what the reader lacks is read, under a lease of its owner, and put
together from the shares of several ranks where layouts or numbers of ranks differ.
"""

import logging
from collections.abc import Mapping, Sequence

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.connectors.connector import (
    Finish,
    KvConnector,
    KvRequest,
    KvShare,
    LoadOrder,
    Save,
)
from stafette.kvtransfer.connectors.loading import Load, failed_load
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.fetching import LocalShare
from stafette.kvtransfer.connectors.p2p.messages import Give, Take
from stafette.kvtransfer.connectors.p2p.receiving import Receiver
from stafette.kvtransfer.connectors.p2p.sending import Sender
from stafette.kvtransfer.errors import InvalidValue, KvTransferError

_log = logging.getLogger(__name__)


class P2pConnector(KvConnector):
    """A request's parameters say where its blocks come from (`Take`), or go to (`Give`)."""

    name = "p2p"
    member_agents: Sequence[tuple[str, bytes]] = ()  # of this worker's other hosts: their metadata

    def __init__(self, agent: Agent, config: P2pConfig | None = None) -> None:
        self.agent = agent
        self.config = config or P2pConfig()
        self._sender = Sender(agent, self.config)
        self._receiver = Receiver(agent, self.config)
        self._regions: list[str] = []

    @classmethod
    def of(cls, agent: Agent | None, config: P2pConfig | None) -> "P2pConnector":
        if agent is None:
            raise InvalidValue(
                "agent", None, "p2p needs a transfer agent: make one for this worker"
            )
        return cls(agent, config)

    def add_peer(self, metadata: bytes) -> str:
        """Get to know another worker's agent; return its name."""
        return self.agent.add_peer(metadata)

    def check(self, params: Mapping[str, object]) -> None:
        Take.find(params)
        Give.find(params)

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
            self._receiver.forget(take.id)
        return Finish() if give is None else self._sender.finish(give, reason)

    def give_up(self, hand_off: str) -> None:
        """Nothing more will come of a hand-off; what has come stays usable. May come early."""
        self._receiver.forget(hand_off)

    def relieve(self) -> bool:
        return self._sender.relieve()

    def register(self, shares: Sequence[KvShare]) -> None:
        super().register(shares)
        local = []
        for number, share in enumerate(shares):
            region = f"{self.config.region}{number}"
            self.agent.register(region, share.buffer, layout=share.layout)
            local.append(LocalShare(region, share.layout))
        self._regions = [share.region for share in local]
        self._sender.register(self._regions)
        self._receiver.register(local)

    def start_load(self, order: LoadOrder) -> Load:
        take = Take.find(order.source)  # type: ignore[arg-type]
        if take is None:
            return failed_load(order, "the request says nothing of where its blocks are")
        if not order.blocks:
            self._receiver.forget(take.id)
            return Load(order)
        return self._receiver.start(order, take)

    def save_layer(self, layer: int, save: Save) -> None:
        if not self.completes(layer):
            return
        give = Give.find(save.params)
        if give is None:
            save.release()
        else:
            self._sender.save(give, save)

    def close(self) -> None:
        """Take the pool's memory back from the agent: from then on it may be freed."""
        self._receiver.close()
        self._sender.close()
        regions, self._regions = self._regions, []
        for region in regions:
            try:
                self.agent.deregister(region)
            except KvTransferError as error:
                _log.warning("region %s is not given back: %s", region, error)
