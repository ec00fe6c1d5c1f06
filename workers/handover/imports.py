"""The reader's side of a hand-over: a prompt's blocks are there before the prompt is queued.

What the pool lacks is loaded into blocks that belong to nobody else, once no step under way can
write there any more, and published under its hashes: the scheduler then finds it like any prefix.
The blocks stay pinned until the prompt is admitted. What cannot be loaded is computed.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from stafette.kvtransfer.connectors.connector import KvConnector, KvRequest
from stafette.kvtransfer.connectors.loading import Load
from stafette.workers.errors import RequestError
from stafette.workers.handover.host import KvHost

Post = Callable[[Callable[[], None]], None]  # runs something soon, in the engine's thread

_ASK_AGAIN_S = 0.005  # when a connector does not know yet what it has
_ASK_FOR_S = 1.0


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was there of a prompt when it could be queued, in tokens."""

    num_held: int  # before
    num_pulled: int
    shortfall: str = ""  # why there is not more, when something stood in the way


OnPulled = Callable[[str, Pulled, float], None]  # of which request, and when that began


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why blocks that were matched, or might have been, did not come."""

    kind: str
    told: str


@dataclass(slots=True)
class ImportCounters:
    num_requests: int = 0
    held_tokens: int = 0
    pulled_tokens: int = 0
    shortfalls: Counter[str] = field(default_factory=Counter)  # by kind


@dataclass(slots=True, eq=False)
class _Import:
    """One prompt on its way in."""

    request: KvRequest
    reply: Callable[[Pulled], None]
    ask_until: float
    held: list[int] = field(default_factory=list)  # cached blocks that it begins with, pinned
    fresh: list[int] = field(default_factory=list)  # blocks that are loaded into
    generation: int = 0  # of the pool
    load: Load | None = None
    finished: bool = False
    cancelled: bool = False
    shortfall: Shortfall | None = None
    followers: list["_Import"] = field(default_factory=list)  # want blocks that come for this one

    @property
    def coming(self) -> tuple[bytes, ...]:
        first = len(self.held)
        return self.request.hashes[first : first + len(self.fresh)]


class Imports:
    """Used by the engine's thread only. The pool's blocks are counted as anywhere else."""

    def __init__(self, engine: KvHost, connector: KvConnector, post: Post) -> None:
        self.counters = ImportCounters()
        self.on_pulled: OnPulled = lambda request_id, pulled, began: None
        self._engine = engine
        self._pool = engine.pool
        self._connector = connector
        self._post = post
        self._requests: dict[str, KvRequest] = {}  # from `begin` to `end`
        self._under_way: dict[KvRequest, _Import] = {}
        self._coming: dict[bytes, _Import] = {}  # by the hash of a block that is being loaded
        self._pinned: dict[KvRequest, list[int]] = {}  # of what was not admitted yet
        self._closed = False

    def begin(self, request: KvRequest, reply: Callable[[Pulled], None]) -> None:
        """Get what can be had of a prompt; `reply` is called here, when its blocks are pinned."""
        name = request.request_id
        if name in self._requests:
            raise RequestError("request_id", name, "is in flight already: choose another id")
        self._requests[name] = request
        each = self._under_way[request] = _Import(request, reply, time.monotonic() + _ASK_FOR_S)
        self._look(each)

    def end(self, request: KvRequest) -> bool:
        """The request has ended, or will never run: give its blocks back, keep what is cached.

        False: it is not one that has begun here.
        """
        if self._requests.get(request.request_id) is not request:
            return False
        del self._requests[request.request_id]
        each = self._under_way.get(request)
        if each is not None:
            each.cancelled = True
            if each.load is not None:
                each.load.cancel()
        self._let_go(request)
        return True

    def after_step(self) -> None:
        """Unpin what was admitted; where nothing can run, what was pinned last gives way."""
        waiting = self._engine.is_waiting
        for request in [each for each in self._pinned if waiting(each.request_id) is False]:
            self._let_go(request)
        if self._engine.is_stalled and self._pinned:
            self._let_go(next(reversed(self._pinned)))

    def close(self) -> None:
        """Cancel everything; blocks that are still written to come back as their loads settle."""
        self._closed = True
        for request in list(self._requests.values()):
            self.end(request)

    def _look(self, each: _Import) -> None:
        """Find out what is missing; load it, or wait for whoever loads the same."""
        if each.cancelled or self._closed:
            self._forget(each)
            return
        hashes = each.request.hashes
        each.held = self._pool.match(hashes)
        missing = hashes[len(each.held) :]
        if missing and missing[0] in self._coming:
            self._coming[missing[0]].followers.append(each)
            return
        matched = self._matched(each)
        if matched is None:
            again = threading.Timer(_ASK_AGAIN_S, self._post, [partial(self._look, each)])
            again.daemon = True
            again.start()
            return
        self._pool.pin(each.held)
        each.generation = self._pool.generation
        self._reserve(each, min(matched, len(missing)))
        if each.fresh:
            self._engine.when_settled(partial(self._start, each))
        else:
            self._start(each)

    def _matched(self, each: _Import) -> int | None:
        """Return how many blocks the connector has beyond those held; None: ask again."""
        size = each.request.block_size
        tokens = self._connector.matched_tokens(each.request, len(each.held) * size)
        if tokens is None:
            return None if time.monotonic() < each.ask_until else 0
        return tokens // size

    def _reserve(self, each: _Import, count: int) -> None:
        """Take blocks for what was matched, all or none: what runs keeps room to go on."""
        if not count:
            return
        left, spare = self._pool.num_available, self._engine.stats().scheduler.num_running + 1
        blocks = self._pool.try_allocate(count) if count + spare <= left else None
        if blocks is None:
            told = f"{count} blocks are wanted, {left} are left, {spare} of them kept free"
            each.shortfall = Shortfall("NoRoom", told)
            return
        each.fresh = blocks
        for block_hash in each.coming:  # after a reset, some may be coming for another already
            self._coming.setdefault(block_hash, each)

    def _start(self, each: _Import) -> None:
        """No step that is on its way writes into the blocks any more."""
        wanted = [] if each.cancelled else each.fresh
        order = self._connector.begin(each.request, len(each.held), wanted)
        each.load = self._connector.start_load(order)
        if each.load.settled:
            self._update(each)
        else:
            each.load.on_ended(lambda _: self._post(partial(self._update, each)))
            each.load.on_settled(lambda _: self._post(partial(self._update, each)))

    def _update(self, each: _Import) -> None:
        load = each.load
        assert load is not None
        if load.ended and not each.finished:
            self._finish(each, load)
        if load.settled:
            self._pool.release(each.fresh)
            each.fresh = []

    def _finish(self, each: _Import, load: Load) -> None:
        """Publish what has arrived, keep it pinned, and answer."""
        each.finished = True
        request, first = each.request, len(each.held)
        for block_hash in each.coming:
            if self._coming.get(block_hash) is each:
                del self._coming[block_hash]
        if load.error is not None and each.fresh:
            each.shortfall = Shortfall(type(load.error).__name__, str(load.error))
        arrived = self._usable(each, load)
        table, each.fresh = each.held + each.fresh[:arrived], each.fresh[arrived:]
        if arrived:
            table = self._pool.publish(table, request.hashes, first, first + arrived)
            self._engine.tell_kv_events()
        del self._under_way[request]
        self._pinned[request] = table
        if each.cancelled:
            self._let_go(request)
        self._answer(each, first, arrived)
        for follower in each.followers:
            self._look(follower)

    def _usable(self, each: _Import, load: Load) -> int:
        if self._pool.generation == each.generation:
            return load.num_arrived
        each.shortfall = Shortfall("CacheReset", "the prefix cache was reset meanwhile")
        return 0

    def _answer(self, each: _Import, held: int, pulled: int) -> None:
        size, counters = each.request.block_size, self.counters
        counters.num_requests += 1
        counters.held_tokens += held * size
        counters.pulled_tokens += pulled * size
        told = ""
        if each.shortfall is not None:
            counters.shortfalls[each.shortfall.kind] += 1
            told = each.shortfall.told
        found = Pulled(held * size, pulled * size, told)
        self.on_pulled(each.request.request_id, found, each.ask_until - _ASK_FOR_S)
        each.reply(found)

    def _forget(self, each: _Import) -> None:
        """Nothing was taken for it yet, and nobody wants it."""
        del self._under_way[each.request]
        each.reply(Pulled(0, 0, "it was cancelled"))

    def _let_go(self, request: KvRequest) -> None:
        self._pool.release(self._pinned.pop(request, []))
