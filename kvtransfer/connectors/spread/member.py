"""Another host's part: an agent and a p2p connector for its shares, which obey the first one."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.connectors.connector import (
    ALL_LAYERS,
    KvRequest,
    KvShare,
    LoadOrder,
    Save,
)
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.connector import P2pConnector
from stafette.kvtransfer.connectors.spread.messages import (
    PREFIX,
    Blocks,
    Word,
    read,
    read_params,
)
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.notifications import Notification

_log = logging.getLogger(__name__)
_NO_PARENT = b""  # of a save: p2p does not ask


class SpreadMember:
    """`config.rank` is its place among the worker's hosts; `head` the first one's agent."""

    def __init__(
        self, agent: Agent, config: P2pConfig, head: str, shares: Sequence[KvShare]
    ) -> None:
        self.connector = P2pConnector(agent, config)
        self.connector.register(shares)
        self._agent = agent
        self._head = head
        self._begun: dict[int, Blocks] = {}  # of which more comes
        self._loads: dict[int, Load] = {}
        self._lock = threading.Lock()
        self._orders = ThreadPoolExecutor(1, "spread")  # in the order in which they come
        agent.subscribe(PREFIX, self._heard)

    def close(self) -> None:
        self._agent.unsubscribe(PREFIX)
        self._orders.shutdown()
        self.connector.close()

    def _heard(self, notification: Notification) -> None:
        if notification.peer != self._head:
            _log.warning("peer %s is not the first host of this worker", notification.peer)
            return
        try:
            self._orders.submit(self._obey, notification.payload)
        except RuntimeError:
            _log.debug("closed meanwhile")

    def _obey(self, payload: bytes) -> None:
        try:
            order = read(payload)
            if isinstance(order, Blocks):
                {"load": self._load, "save": self._save}[order.kind](order)
            else:
                self._words()[order.kind](order)
        except (KvTransferError, KeyError) as error:
            _log.warning("the first host's order cannot be followed: %s", error)

    def _words(self) -> Mapping[str, Callable[[Word], object]]:
        return {
            "peer": lambda word: self._agent.add_peer(word.content),
            "cancel": self._cancel,
            "finish": self._finish,
            "give_up": lambda word: self.connector.give_up(word.words),
            "relieve": lambda word: self.connector.relieve(),
        }

    def _load(self, order: Blocks) -> None:
        begun = self._begun.pop(order.number, None)
        whole = order if begun is None else begun.and_then(order)
        if order.more:
            self._begun[order.number] = whole
            return
        wanted = LoadOrder("", whole.first, whole.hashes, whole.blocks, dict(whole.params))
        load = self.connector.start_load(wanted)
        with self._lock:
            self._loads[order.number] = load
        load.on_settled(partial(self._loaded, order.number))

    def _loaded(self, number: int, load: Load) -> None:
        with self._lock:
            self._loads.pop(number, None)
        short = "" if load.error is None else str(load.error)
        self._answer(Word("loaded", number, load.num_arrived, short))

    def _save(self, order: Blocks) -> None:
        release = partial(self._answer, Word("released", order.number))
        hashes, blocks = order.hashes, order.blocks
        save = Save("", order.first, _NO_PARENT, hashes, blocks, release, order.params)
        self.connector.save_layer(ALL_LAYERS, save)

    def _cancel(self, word: Word) -> None:
        with self._lock:
            load = self._loads.get(word.number)
        if load is not None:
            load.cancel()

    def _finish(self, word: Word) -> None:
        request = KvRequest("", (), (), 1, params=read_params(word.content))
        self.connector.finish(request, word.words)

    def _answer(self, word: Word) -> None:
        try:
            self._agent.notify(self._head, word.pack())
        except KvTransferError as error:
            _log.warning("the first host of this worker cannot be told: %s", error)
