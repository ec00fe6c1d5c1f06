"""A mock worker as a service: whoever asks it over its stream cannot tell it from a real one."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from stafette.kvtransfer.blocks import BlockHasher
from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.event_stream.publisher import EventPublisher
from stafette.kvtransfer.leases.held import EndReason
from stafette.kvtransfer.leases.table import LeaseCounters
from stafette.kvtransfer.telemetry import TransferCounters
from stafette.workers.errors import EngineDead, RequestError
from stafette.workers.handover.exports import Exported
from stafette.workers.handover.imports import Imports
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.core import Mocker
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.news import News
from stafette.workers.request import OutputDelta
from stafette.workers.service.deliveries import Deliveries
from stafette.workers.service.frames import Order
from stafette.workers.service.inbox import Inbox
from stafette.workers.service.load import load_of
from stafette.workers.service.measured import Measured
from stafette.workers.service.outcome import told_of
from stafette.workers.service.preheating import preheat_request
from stafette.workers.service.serving import Operation
from stafette.workers.service.standing import Standing
from stafette.workers.step_samples import StepSamples

_log = logging.getLogger(__name__)
_MOST_MOVES = 8  # in one turn of the event loop, which others wait for
_LATE_S = 0.05  # up to which a step counts as made in time, so that the next one ends in time too


class MockWorker(Standing):
    """Steps in the event loop in which it was made, by the loop's timers."""

    def __init__(
        self, config: MockerConfig, host: MockHost, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        super().__init__(config.role)
        self.late_seconds = 0.0  # by which steps came after their time, all together
        self._host = host
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._epoch = time.time_ns()
        self._deliveries = Deliveries()
        self._inboxes: dict[str, Inbox] = {}  # by request
        self._prefills: set[asyncio.Future[Exported]] = set()
        self._dead: EngineDead | None = None
        self._samples = StepSamples()
        log = EventLog(config.name, self._epoch)
        self.core = Mocker(config, clock, log, host.wire(config.name))
        self._events = EventPublisher(log, config.events, host.context)
        self.core.on_kv_events = self._events.send
        self.core.on_wake = self._arm
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._stepping = False
        host.add(config.name, self)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def imports(self) -> Imports:
        return self.core.imports

    @property
    def num_running(self) -> int:
        return self.core.stats().scheduler.num_running

    @property
    def is_alive(self) -> bool:
        return self._dead is None

    @property
    def num_pinned(self) -> int:
        """Blocks that others may be reading."""
        return self.core.exports.counters.num_pinned

    def relieve(self) -> None:
        """Take back a lease whose reader has had time enough."""
        self.core.connector.relieve()

    def describe(self) -> Mapping[str, object]:
        engine = self.config.engine
        hasher = BlockHasher(engine.prefix_cache_key, engine.block_size, engine.model)
        return {
            "role": self.role,
            "class": self.config.worker_class,
            "model": engine.model,
            "loras": [],
            "max_model_len": self.config.max_model_len,
            "block_size": engine.block_size,
            "fingerprint": hasher.fingerprint,
            "num_blocks": self.config.num_blocks,
            "block_bytes": self.config.block_bytes,
            "max_num_seqs": engine.max_num_seqs,
            "host": host_id(),
            "agent": self._host.metadata(self.name),
            "members": [],
            "events": [self._events.address, self._events.replay_address],
        }

    def load(self) -> Mapping[str, object]:
        for seconds, work in self.core.take_steps():
            self._samples.add_work(work, seconds)
        told = load_of(self.core.stats().scheduler, self.role, self.draining)
        return {
            **told,
            "pulled_tokens": self.core.imports.counters.pulled_tokens,
            "passed_tokens": self.core.exports.counters.passed_tokens,
            "steps": self._samples.latest(),
        }

    def measured(self) -> Measured:
        moved = self.core.connector.counters
        ended = Counter({EndReason.EXPIRED: moved.expired})
        ended[EndReason.RELEASED] = moved.granted - moved.leases - moved.expired
        return Measured(
            role=self.role,
            draining=self.draining,
            alive=self._dead is None,
            engine=self.core.stats(),
            step_seconds=self.core.steps.step_seconds,
            times=None,
            imports=self.core.imports.counters,
            exports=self.core.exports.counters,
            transfers={"mock": TransferCounters(moved.pieces, moved.nbytes)},
            unsettled=0,
            leases=LeaseCounters(moved.granted, living=moved.leases, ended=ended),
            refused_peers={},
            tiers=None,
        )

    async def generate(self, order: Order) -> AsyncGenerator[OutputDelta, None]:
        if not order.last_resort:
            self._raise_if_draining()
        self._raise_if_dead()
        name, inbox, finished = order.request.request_id, Inbox(self._deliveries), False
        self.core.generate(order.request, order.kv_params)
        self._inboxes[name] = inbox
        try:
            while not finished:
                for delta in await inbox.next():
                    finished = delta.finish_reason is not None
                    yield delta
        finally:
            del self._inboxes[name]
            if not finished:
                self.core.abort(name)

    async def prefill(self, order: Order) -> Mapping[str, object]:
        if order.cached_only:
            return told_of(self.core.offer(order.request, order.kv_params))
        self._raise_if_draining()
        self._raise_if_dead()
        done: asyncio.Future[Exported] = self._loop.create_future()

        def exported(what: Exported) -> None:
            if not done.done():
                done.set_result(what)

        self.core.prefill(order.request, order.kv_params, exported)
        self._prefills.add(done)
        try:
            return told_of(await done)
        finally:
            self._prefills.discard(done)
            self.core.abort(order.request.request_id)

    def operations(self) -> Mapping[str, Operation]:
        return {
            "add_peer": self._add_peer,
            "set_role": self._set_role,
            "drain": self._drain,
            "retire": self._retire,
            "give_up": self._give_up,
            "stats": self._stats,
            "reset_prefix_cache": self._reset_prefix_cache,
            "preheat": self._preheat,
        }

    def hear(self, peer: str, news: News) -> None:
        self.core.hear(peer, news)

    def lost(self, peer: str) -> None:
        self.core.lost(peer)

    async def close(self) -> None:
        """End what is under way, and give everything back."""
        self._host.remove(self.name)
        self._fail(EngineDead("engine", "closed", "start another one"))
        self.core.close()
        await asyncio.to_thread(self._events.close)

    # Time

    def _arm(self) -> None:
        """Let the next step be made when it is due."""
        due = None if self._stepping else self.core.next_step_at()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - self._clock()), self._turn)

    def _turn(self) -> None:
        """Make the steps that are due, but leave some of the loop's time to others."""
        self._timer, self._stepping = None, True
        try:
            self._make_steps()
        except Exception as error:
            _log.exception("mock worker %s stopped", self.name)
            self._fail(EngineDead("engine", repr(error), "restart it; the log has the reason"))
            return
        self._stepping = False
        self._arm()

    def _make_steps(self) -> None:
        for _ in range(_MOST_MOVES):
            now, due = self._clock(), self.core.next_step_at()
            if due is None or due > now:
                return
            self.late_seconds += now - due
            for delta in self.core.step(due if now - due < _LATE_S else now):
                inbox = self._inboxes.get(delta.request_id)
                if inbox is not None:
                    inbox.put(delta)

    def _fail(self, dead: EngineDead) -> None:
        """No step is made any more; whoever waits hears why."""
        self._dead = self._dead or dead
        self._stepping = True
        if self._timer is not None:
            self._timer.cancel()
        for inbox in self._inboxes.values():
            inbox.fail(dead)
        for prefill in self._prefills:
            if not prefill.done():
                prefill.set_exception(dead)

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise EngineDead(*self._dead.args)

    # What else can be asked

    async def _add_peer(self, payload: object) -> object:
        if not isinstance(payload, bytes):
            raise RequestError("metadata", payload, "must be bytes of a worker's metadata")
        try:
            return self._host.add_peer(payload)
        except KvTransferError as error:
            raise RequestError("metadata", f"{len(payload)} bytes", str(error)) from error

    async def _give_up(self, payload: object) -> object:
        """Nothing more will come of a hand-off: who waits for it goes on without."""
        if not isinstance(payload, str):
            raise RequestError("hand-off", payload, "must be an id")
        self.core.give_up(payload)
        return None

    async def _stats(self, payload: object) -> object:
        stats, moved = self.core.stats(), self.core.connector.counters
        return {
            "at": time.time(),
            **self.load(),
            "steps": stats.num_steps,
            "tokens": stats.num_tokens,
            "busy_seconds": stats.busy_seconds,
            "pulled_tokens": self.core.imports.counters.pulled_tokens,
            "shortfalls": dict(self.core.imports.counters.shortfalls),
            "pinned_blocks": self.num_pinned,
            "leases": moved.leases,
            "moved_bytes": {"mock": moved.nbytes},
        }

    async def _preheat(self, payload: object) -> object:
        """Compute a prompt for those that will begin like it; return how much of it is cached."""
        request = preheat_request(payload)
        async with aclosing(self.generate(Order(request))) as deltas:
            async for _ in deltas:
                pass
        size = self.config.engine.block_size
        return len(request.prompt_token_ids) // size * size

    async def _reset_prefix_cache(self, payload: object) -> object:
        self.core.reset_prefix_cache()
        return None
