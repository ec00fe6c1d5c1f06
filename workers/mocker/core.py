"""An engine without its model: the real scheduler, pool and hand-over, on a clock passed in.

It waits for nothing and has no threads. Whoever drives it calls `step` at the time that
`next_step_at` tells, on a wall clock or a virtual one, and gets what an engine would answer. With
`on_stretch`, steps between which nothing can happen are made at once (see `glide`).
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from stafette.kvtransfer.blocks import BlockHasher
from stafette.kvtransfer.connectors.connector import KvConnector, KvRequest
from stafette.kvtransfer.connectors.multi import MultiConnector
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.events import EventBatch
from stafette.workers.errors import RequestError
from stafette.workers.handover.exports import Exported, Exports
from stafette.workers.handover.imports import Imports
from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.mocker.agenda import Agenda
from stafette.workers.mocker.answers import MockDevice
from stafette.workers.mocker.asked import Words, check_request, kv_request, words_of
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.connector import MockConnector
from stafette.workers.mocker.glide import Flight, Glide, Stretch, decodes, steps_ahead
from stafette.workers.mocker.news import News, NoWire, Wire
from stafette.workers.mocker.tiers import tiers_of
from stafette.workers.request import OutputDelta, Request
from stafette.workers.scheduler import Scheduler
from stafette.workers.scheduler_config import SchedulerConfig
from stafette.workers.sequence import Sequence
from stafette.workers.stats import EngineStats, StepClock
from stafette.workers.step_samples import StepWork

Clock = Callable[[], float]
Params = Mapping[str, object]  # by connector: what came along with a request
OnExported = Callable[[Exported], None]
OnStretch = Callable[[Stretch], None]

_NOTHING: Params = {}
_STALLED_S = 0.002  # between two tries to run something while others hold its blocks


@dataclass(slots=True, eq=False)
class _Open:
    """A request that was taken and has not ended."""

    request: Request
    wanted: KvRequest
    words: bytes  # of its prompt
    on_exported: OnExported | None  # None: its answer is wanted
    seq_id: int = 0  # 0: its blocks are still coming, or its answer has ended
    num_cached_tokens: int = 0
    begun: bool = False  # a token of its answer was told


class Mocker:
    """Used by one thread. `on_wake` tells that `next_step_at` may have become earlier."""

    def __init__(
        self,
        config: MockerConfig,
        clock: Clock,
        kv_events: EventLog,
        wire: Wire | None = None,
        on_stretch: OnStretch | None = None,
    ) -> None:
        engine = config.engine
        self.config = config
        self.kv_events = kv_events
        self.on_kv_events: Callable[[EventBatch], None] = lambda batch: None
        self.on_wake: Callable[[], None] = lambda: None
        self.pool = BlockPool(
            config.num_blocks, engine.block_size, engine.enable_prefix_caching, kv_events.add
        )
        self._hasher = BlockHasher(engine.prefix_cache_key, engine.block_size, engine.model)
        self.scheduler = Scheduler(
            SchedulerConfig.of(engine, config.max_model_len, config.eos_token_ids),
            self.pool,
            self.now,
            hasher=self._hasher,
        )
        self.is_stalled = False
        self._on_stretch = on_stretch
        self._glide: Glide | None = None
        self._num_exporting = 0
        self._clock = clock
        self._now: float | None = None  # of the step that is made
        self._device = MockDevice(config)
        self._depth = 2 if engine.async_scheduling else 1
        self._in_flight: deque[Flight] = deque()
        self._launch_at: float | None = None  # when to look for work; None: when a batch ends
        self._awaiting: list[tuple[int, Callable[[], None]]] = []  # until which batch is settled
        self._open: dict[str, _Open] = {}  # by request id
        self._by_seq: dict[int, _Open] = {}
        self._last_seq_id = 0
        self.steps = StepClock()
        self._agenda = Agenda()
        self.connector = MockConnector(config, self._agenda, self.now, wire or NoWire())
        timing = (self._agenda, self.now, lambda: self.on_wake())
        self.tiers = tiers_of(config, timing, kv_events.add)
        self._ways: KvConnector = self.connector  # all that blocks come by, and go
        if self.tiers is not None:
            self._ways = MultiConnector((self.tiers, self.connector))
        self.imports = Imports(self, self._ways, self._post)
        self.exports = Exports(self, self._ways, self._post)

    # Requests

    def check(self, request: Request, words: Words | None = None) -> Words:
        """Raise RequestError when this request could not be served; return its prompt's words."""
        if request.request_id in self._open:
            remedy = "is in flight already: choose another id"
            raise RequestError("request_id", request.request_id, remedy)
        if words is None:
            words = words_of(request.prompt_token_ids)
        check_request(request, words, self.config)
        return words

    def generate(
        self, request: Request, kv_params: Params = _NOTHING, words: Words | None = None
    ) -> None:
        """Answer a request: what is added to its answer comes from `step`.

        `words` are its prompt's tokens once more, where they are at hand.
        """
        self._begin(request, kv_params, None, words)

    def prefill(
        self,
        request: Request,
        kv_params: Params,
        on_exported: OnExported,
        words: Words | None = None,
    ) -> None:
        """Compute a prompt, and pass its blocks on meanwhile. Ask for one token."""
        self._begin(request, kv_params, on_exported, words)

    def offer(self, request: Request, kv_params: Params, words: Words | None = None) -> Exported:
        """Pass on what is cached of a prompt, and compute nothing."""
        self.settle()
        wanted, _ = self._prepare(request, kv_params, words)
        self.exports.begin(wanted)
        exported = self.exports.finish(wanted, "the rest is not cached")
        self._check_glide()
        self.on_wake()
        return exported

    def abort(self, request_id: str) -> bool:
        """Forget a request; its blocks are free now. False: it is not here."""
        if request_id not in self._open:
            return False
        self._land()
        each = self._open[request_id]
        if each.seq_id:
            self.scheduler.abort(each.seq_id)
        self._close(each, "the request was aborted")
        self._wake()
        return True

    # Time

    def now(self) -> float:
        return self._clock() if self._now is None else self._now

    def next_step_at(self) -> float | None:
        """Return when `step` has something to do; None: when something comes."""
        due = self._launch_at if self._glide is None else self._glide.ends_at
        if due is None and self._in_flight:
            due = self._in_flight[0].ends_at
        later = self._agenda.next_at
        return due if later is None or (due is not None and due < later) else later

    def step(self, now: float) -> list[OutputDelta]:
        """Do what is due: end a batch, or look for the next one. Return what a batch brought.

        What comes between the two is in the next batch: so is whatever answers what it brought.
        """
        self._now = now
        try:
            self.settle()
            self._agenda.run(now)
            if self.tiers is not None:
                self.tell_kv_events()
            self._check_glide()
            if self._glide is not None:
                self._end_glide(self._glide, now)
                return []
            if self._launch_at is not None and self._launch_at <= now:
                self._launch(now)
            elif self._in_flight and self._in_flight[0].ends_at <= now:
                return self._advance(now)
            return []
        finally:
            self._now = None

    def hear(self, peer: str, news: News) -> None:
        """Take in what another worker tells."""
        self.settle()
        self.connector.hear(peer, news)
        self._wake()

    def lost(self, peer: str) -> None:
        """Another worker is gone."""
        self.settle()
        self.connector.lost(peer)
        self._wake()

    def give_up(self, hand_off: str) -> None:
        """Nothing more will come of a hand-off: who waits for it goes on without."""
        self.settle()
        self.connector.give_up(hand_off)
        self._wake()

    def set_pace(self, factor: float) -> None:
        """Let every step that begins from now on take so many times as long."""
        self._land()
        self._device.set_pace(factor)

    # What it tells

    def settle(self) -> None:
        """Tell of all steps that have ended by now; without `on_stretch`, that is always so."""
        if self._glide is not None:
            self._settle(self._glide, self._glide.num_over(self.now()))

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight or self._glide)

    def take_steps(self) -> list[tuple[float, StepWork]]:
        """Return how long some of the steps took that were begun since the last call."""
        latest = list(self._device.latest)
        self._device.latest.clear()
        return latest

    def stats(self) -> EngineStats:
        self.settle()
        return self.steps.stats(self.scheduler.stats())

    def reset_prefix_cache(self) -> None:
        """Forget every prefix; what runs goes on."""
        self._land()
        self.pool.reset_prefix_cache()
        self._ways.reset_cache()
        self.tell_kv_events()

    def close(self) -> None:
        """End what is under way, and give every block back."""
        self._land()
        for request_id in list(self._open):
            self.abort(request_id)
        self.imports.close()
        self.exports.close()
        self._ways.close()
        self._agenda.run(self.now())

    def end_tiers(self) -> None:
        """Give back what tiers take of this process: the worker is gone, or the run over."""
        if self.tiers is not None:
            self.tiers.close()

    # What a hand-over needs (KvHost)

    def is_waiting(self, request_id: str) -> bool | None:
        each = self._open.get(request_id)
        if each is None or not each.seq_id:
            return None
        return not self.scheduler.was_admitted(each.seq_id)

    def when_settled(self, call: Callable[[], None]) -> None:
        self._land()
        if self._in_flight:
            self._awaiting.append((self._in_flight[-1].batch.step, call))
        else:
            call()

    def tell_kv_events(self) -> None:
        if events := self.kv_events.flush():
            self.on_kv_events(events)
            if self._ways.saves_all:
                self.exports.pass_on_all(events.events)

    # The life of a request

    def _begin(
        self, request: Request, params: Params, on_exported: OnExported | None, words: Words | None
    ) -> None:
        self.settle()
        wanted, known = self._prepare(request, params, words)
        each = self._open[request.request_id] = _Open(request, wanted, known, on_exported)
        if on_exported is not None:
            self._land()
            self._num_exporting += 1
            self.exports.begin(wanted)
        self.imports.begin(wanted, lambda pulled: self._queue(each))
        self._check_glide()
        self.on_wake()

    def _prepare(
        self, request: Request, params: Params, words: Words | None
    ) -> tuple[KvRequest, bytes]:
        """Return what a hand-over knows of a request, and its prompt's words."""
        words = self.check(request, words)
        try:
            self._ways.check(params)
        except KvTransferError as error:
            raise RequestError("params", params, str(error)) from error
        wanted = kv_request(request, words, params, self._hasher)
        return wanted, words.tobytes()

    def _queue(self, each: _Open) -> None:
        if self._open.get(each.request.request_id) is not each:
            return  # aborted while its blocks were coming
        self._land()
        self._last_seq_id += 1
        each.seq_id = self._last_seq_id
        self._by_seq[each.seq_id] = each
        params = each.request.params
        self._device.introduce(each.seq_id, each.words, params)
        seq = Sequence.of(each.request, params, each.seq_id)
        seq.hashes = list(each.wanted.hashes)
        self.scheduler.add(seq)
        self._wake()

    def _close(self, each: _Open, reason: str) -> None:
        """A request has ended; `reason` tells why, when it did so early."""
        del self._open[each.request.request_id]
        self._by_seq.pop(each.seq_id, None)
        self._device.forget(each.seq_id)
        began = self.imports.end(each.wanted)
        if each.on_exported is not None:
            self._num_exporting -= 1
            exported = self.exports.finish(each.wanted, reason)
            each.on_exported(replace(exported, num_cached_tokens=each.num_cached_tokens))
        elif began:
            self._ways.finish(each.wanted)

    # A step

    def _launch(self, now: float) -> None:
        """Keep the device busy: one batch that runs, and one behind it with async scheduling."""
        self._launch_at = None
        if self._on_stretch is None or not self._begin_glide(now):
            self._make_batches(now)

    def _make_batches(self, now: float) -> None:
        while len(self._in_flight) < self._depth:
            batch = self.scheduler.next_batch()
            if batch is None:
                break
            begins_at = self._in_flight[-1].ends_at if self._in_flight else now
            output = self._device.execute(batch)
            self._in_flight.append(Flight(batch, output, begins_at + output.seconds))
        self.is_stalled = not self._in_flight and self.scheduler.has_work
        if self.is_stalled:
            self._after_step()
            self._launch_at = now + _STALLED_S

    def _advance(self, now: float) -> list[OutputDelta]:
        """End the oldest batch."""
        flight = self._in_flight.popleft()
        self.steps.record(flight.batch.num_tokens, flight.output.seconds)
        if self.tiers is not None:
            self._tell_of_step(StepWork.of(flight.batch.seqs), flight.output.seconds)
        deltas, ended = [], []
        for progress in self.scheduler.settle(flight.batch, flight.output):
            each = self._by_seq[progress.seq_id]
            each.num_cached_tokens = max(each.num_cached_tokens, progress.num_cached_tokens)
            each.begun = True
            deltas.append(
                OutputDelta(
                    each.request.request_id,
                    0,
                    progress.token_ids,
                    "",
                    finish_reason=progress.finish_reason,
                    stop_reason=progress.stop_token,
                    num_cached_tokens=progress.num_cached_tokens,
                )
            )
            if progress.finish_reason is not None:
                del self._by_seq[progress.seq_id]
                self._device.forget(progress.seq_id)
                each.seq_id = 0
                ended.append(each)
        while self._awaiting and self._awaiting[0][0] <= flight.batch.step:
            self._awaiting.pop(0)[1]()
        self._after_step()
        for each in ended:
            self._close(each, "")
        self._launch_at = now
        return deltas

    # Many steps at once

    def _begin_glide(self, now: float) -> bool:
        """Glide over the steps to come, if nothing can happen between them."""
        flights = self._in_flight
        if self._awaiting or self._num_exporting or self.tiers or len(flights) != self._depth - 1:
            return False
        seqs = self.scheduler.steady()
        if not seqs or not all(self._by_seq[seq.seq_id].begun for seq in seqs):
            return False
        if flights and not decodes(flights[0].batch, seqs):
            return False
        ahead = len(flights)
        steps = steps_ahead(seqs, self._device, self.pool.block_size, ahead, self._num_evictable())
        if steps:
            flight = flights.popleft() if flights else None
            self._glide = Glide(self.scheduler, self._device, seqs, steps, now, flight)
        return steps > 0

    def _end_glide(self, glide: Glide, now: float) -> None:
        """End it where its last step does; the next batch is looked for as behind any step."""
        if now >= glide.ends_at:
            self._settle(glide, glide.num_steps)
            self._in_flight.extend(glide.flights(self._depth - 1))
            self._glide, self._launch_at = None, now

    def _land(self) -> None:
        """Something comes that the next batches depend on: go on step by step."""
        self.settle()
        if self._glide is not None:
            self._in_flight.extend(self._glide.flights(self._depth))
            self._glide = None
            self.on_wake()

    def _check_glide(self) -> None:
        """Land where the blocks that the glide needs have gone to somebody else."""
        glide = self._glide
        if glide is not None and glide.blocks_wanted > self._num_evictable():
            self._land()

    def _num_evictable(self) -> int:
        """Return how many blocks can be had for sure.

        One whose child is leased cannot be evicted, though it is counted as available.
        """
        leased = self.exports.counters.num_pinned > 0
        return self.pool.num_available - (self.pool.num_idle if leased else 0)

    def _settle(self, glide: Glide, count: int) -> None:
        if count > glide.num_settled:
            assert self._on_stretch is not None, "else nobody glides"
            stretch, seconds = glide.settle(count, self._tell_as_of)
            self.steps.record_all(len(stretch.seq_ids), seconds)
            names = [self._by_seq[seq_id].request.request_id for seq_id in stretch.seq_ids]
            self._on_stretch(replace(stretch, request_ids=names))

    def _tell_as_of(self, at: float) -> None:
        now, self._now = self._now, at
        self.tell_kv_events()
        self._now = now

    def _tell_of_step(self, work: StepWork, seconds: float) -> None:
        """As a hand-over does: tiers compare what computing takes with what loading does."""
        if work.tokens:
            waiting = self.scheduler.num_waiting
            self._ways.note_step(work.tokens, seconds * work.of_prompts, waiting)

    def _after_step(self) -> None:
        self.exports.after_step()
        self.imports.after_step()
        self.tell_kv_events()

    def _wake(self) -> None:
        """Something may be able to run now."""
        self._check_glide()
        if not self._in_flight and self._glide is None:  # else when a batch ends, as in an engine
            self._launch_at = self.now()
        self.on_wake()

    def _post(self, call: Callable[[], None]) -> None:
        self._agenda.at(self.now(), call)
        self._wake()
