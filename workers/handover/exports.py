"""The owner's side of a hand-over: a prompt's blocks are passed on as soon as they are done.

After every step it looks which blocks of its prompts can be found in the pool: those that the step
has computed, and those that were cached before. They are pinned until the connector lets them go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.connectors.connector import ALL_LAYERS, KvConnector, KvRequest, Save
from stafette.kvtransfer.events import BlockStored, KvEvent
from stafette.workers.errors import RequestError
from stafette.workers.handover.host import KvHost


@dataclass(frozen=True, slots=True)
class Exported:
    """What was passed on of a prompt; `params` is for the next engine's request."""

    num_tokens: int
    num_cached_tokens: int = 0  # that this engine did not have to compute
    params: dict[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class ExportCounters:
    num_requests: int = 0
    passed_tokens: int = 0
    num_pinned: int = 0  # blocks, as of now; one that is passed on twice counts twice


@dataclass(slots=True, eq=False)
class _Export:
    request: KvRequest
    end: int = 0  # blocks that were passed on


class Exports:
    """Used by the engine's thread only; what connectors let go comes back by `post`."""

    def __init__(
        self, engine: KvHost, connector: KvConnector, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self.counters = ExportCounters()
        self._engine = engine
        self._pool = engine.pool
        self._connector = connector
        self._post = post
        self._under_way: dict[str, _Export] = {}  # by request

    def begin(self, request: KvRequest) -> None:
        """Pass on what is cached of a prompt, and from now on what comes."""
        if request.request_id in self._under_way:
            remedy = "is in flight already: choose another id"
            raise RequestError("request_id", request.request_id, remedy)
        self.counters.num_requests += 1
        each = self._under_way[request.request_id] = _Export(request)
        self._pass_on(each)

    def after_step(self) -> None:
        for each in self._under_way.values():
            self._pass_on(each)
        if self.counters.num_pinned and self._engine.is_stalled:
            self._connector.relieve()

    def pass_on_all(self, events: Sequence[KvEvent]) -> None:
        """Pass on whatever the pool can find since the last time, whosever it is."""
        for event in events:
            if isinstance(event, BlockStored) and event.tier == "device":
                blocks = self._pool.match(event.hashes)
                if blocks:
                    hashes = event.hashes[: len(blocks)]
                    self._save(Save("", 0, event.parent or ROOT, hashes, tuple(blocks), _nothing))

    def finish(self, request: KvRequest, reason: str = "") -> Exported:
        """Nothing more will come of a prompt; `reason` tells why, when not all has."""
        each = self._under_way.get(request.request_id)
        if each is None or each.request is not request:
            return Exported(0)  # this worker ends
        del self._under_way[request.request_id]
        finish = self._connector.finish(each.request, reason)
        return Exported(each.end * each.request.block_size, params=dict(finish.params))

    def close(self) -> None:
        for each in list(self._under_way.values()):
            self.finish(each.request, "this worker ends")

    def _pass_on(self, each: _Export) -> None:
        request, first = each.request, each.end
        blocks = self._pool.match(islice(request.hashes, first, None))
        if not blocks:
            return
        each.end += len(blocks)
        self.counters.passed_tokens += len(blocks) * request.block_size
        parent = request.hashes[first - 1] if first else ROOT
        hashes = request.hashes[first : each.end]
        name, params = request.request_id, request.params
        self._save(Save(name, first, parent, hashes, tuple(blocks), _nothing, params))

    def _save(self, save: Save) -> None:
        """Pin the blocks, and give them to the connector until it lets them go."""
        self._pool.pin(save.blocks)
        self.counters.num_pinned += len(save.blocks)
        release = partial(self._post, partial(self._let_go, save.blocks))
        self._connector.save_layer(ALL_LAYERS, replace(save, release=release))

    def _let_go(self, blocks: tuple[int, ...]) -> None:
        self._pool.release(blocks)
        self.counters.num_pinned -= len(blocks)


def _nothing() -> None:
    pass
