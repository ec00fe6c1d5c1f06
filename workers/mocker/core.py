"""An engine without its model: the real scheduler, pool and hand-over, on a clock passed in.

It waits for nothing and has no threads. Whoever drives it calls `step` at the time that
`next_step_at` tells, on a wall clock or a virtual one, and gets what an engine would answer.
"""

from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from stafette.kvtransfer.blocks import BlockHasher, Extras
from stafette.kvtransfer.connectors.connector import KvRequest
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.events import EventBatch
from stafette.workers.batch import Batch, StepOutput
from stafette.workers.errors import RequestError
from stafette.workers.handover.exports import Exported, Exports
from stafette.workers.handover.imports import Imports
from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.mocker.agenda import Agenda
from stafette.workers.mocker.answers import MockDevice
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.connector import MockConnector
from stafette.workers.mocker.news import News, NoWire, Wire
from stafette.workers.request import OutputDelta, Request
from stafette.workers.scheduler import Scheduler, SchedulerConfig
from stafette.workers.sequence import Sequence
from stafette.workers.stats import EngineStats, StepClock

Clock = Callable[[], float]
Params = Mapping[str, object]  # by connector: what came along with a request
OnExported = Callable[[Exported], None]

_NOTHING: Params = {}
_STALLED_S = 0.002  # between two tries to run something while others hold its blocks


@dataclass(slots=True, eq=False)
class _Open:
    """A request that was taken and has not ended."""

    request: Request
    wanted: KvRequest
    on_exported: OnExported | None  # None: its answer is wanted
    seq_id: int = 0  # 0: its blocks are still coming, or its answer has ended
    num_cached_tokens: int = 0


@dataclass(slots=True)
class _Flight:
    batch: Batch
    output: StepOutput
    ends_at: float


class Mocker:
    """Used by one thread. `on_wake` tells that `next_step_at` may have become earlier."""

    def __init__(
        self, config: MockerConfig, clock: Clock, kv_events: EventLog, wire: Wire | None = None
    ) -> None:
        engine = config.engine
        self.config = config
        self.kv_events = kv_events
        self.on_kv_events: Callable[[EventBatch], None] = lambda batch: None
        self.on_wake: Callable[[], None] = lambda: None
        self.pool = BlockPool(
            config.num_blocks, engine.block_size, engine.enable_prefix_caching, kv_events.add
        )
        self.scheduler = Scheduler(
            SchedulerConfig.of(engine, config.max_model_len, config.eos_token_ids),
            self.pool,
            self.now,
            hasher=BlockHasher(engine.prefix_cache_key, engine.block_size, engine.model),
        )
        self.is_stalled = False
        self._clock = clock
        self._now: float | None = None  # of the step that is made
        self._device = MockDevice(config)
        self._depth = 2 if engine.async_scheduling else 1
        self._in_flight: deque[_Flight] = deque()
        self._launch_at: float | None = None  # when to look for work; None: when a batch ends
        self._awaiting: list[tuple[int, Callable[[], None]]] = []  # until which batch is settled
        self._open: dict[str, _Open] = {}  # by request id
        self._by_seq: dict[int, _Open] = {}
        self._last_seq_id = 0
        self._steps = StepClock()
        self._agenda = Agenda()
        self.connector = MockConnector(config, self._agenda, self.now, wire or NoWire())
        self.imports = Imports(self, self.connector, self._post)
        self.exports = Exports(self, self.connector, self._post)

    # Requests

    def check(self, request: Request) -> None:
        """Raise RequestError when this request could not be served."""
        if request.request_id in self._open:
            remedy = "is in flight already: choose another id"
            raise RequestError("request_id", request.request_id, remedy)
        _check_wishes(request)
        request.params.check_against(
            vocab_size=self.config.vocab_size,
            max_logprobs=0,
            max_model_len=self.config.max_model_len,
            prompt_len=len(request.token_ids),
        )
        budget = self.config.engine.max_num_batched_tokens
        if len(request.token_ids) > budget and not self.config.engine.enable_chunked_prefill:
            remedy = f"must fit into max_num_batched_tokens = {budget}"
            raise RequestError("prompt", f"{len(request.token_ids)} tokens", remedy)
        _check_tokens(request.token_ids, self.config.vocab_size)

    def generate(self, request: Request, kv_params: Params = _NOTHING) -> None:
        """Answer a request: what is added to its answer comes from `step`."""
        self._begin(request, kv_params, None)

    def prefill(self, request: Request, kv_params: Params, on_exported: OnExported) -> None:
        """Compute a prompt, and pass its blocks on meanwhile. Ask for one token."""
        self._begin(request, kv_params, on_exported)

    def offer(self, request: Request, kv_params: Params) -> Exported:
        """Pass on what is cached of a prompt, and compute nothing."""
        wanted = self._prepare(request, kv_params)
        self.exports.begin(wanted)
        exported = self.exports.finish(wanted, "the rest is not cached")
        self.on_wake()
        return exported

    def abort(self, request_id: str) -> bool:
        """Forget a request; its blocks are free now. False: it is not here."""
        each = self._open.get(request_id)
        if each is None:
            return False
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
        due = self._launch_at
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
            self._agenda.run(now)
            if self._launch_at is not None and self._launch_at <= now:
                self._launch(now)
            elif self._in_flight and self._in_flight[0].ends_at <= now:
                return self._advance(now)
            return []
        finally:
            self._now = None

    def hear(self, peer: str, news: News) -> None:
        """Take in what another worker tells."""
        self.connector.hear(peer, news)
        self._wake()

    def lost(self, peer: str) -> None:
        """Another worker is gone."""
        self.connector.lost(peer)
        self._wake()

    def give_up(self, hand_off: str) -> None:
        """Nothing more will come of a hand-off: who waits for it goes on without."""
        self.connector.give_up(hand_off)
        self._wake()

    # What it tells

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    def stats(self) -> EngineStats:
        return self._steps.stats(self.scheduler.stats())

    def reset_prefix_cache(self) -> None:
        """Forget every prefix; what runs goes on."""
        self.pool.reset_prefix_cache()
        self.connector.reset_cache()
        self.tell_kv_events()

    def close(self) -> None:
        """End what is under way, and give every block back."""
        for request_id in list(self._open):
            self.abort(request_id)
        self.imports.close()
        self.exports.close()
        self.connector.close()
        self._agenda.run(self.now())

    # What a hand-over needs (KvHost)

    def is_waiting(self, request_id: str) -> bool | None:
        each = self._open.get(request_id)
        if each is None or not each.seq_id:
            return None
        return not self.scheduler.was_admitted(each.seq_id)

    def when_settled(self, call: Callable[[], None]) -> None:
        if self._in_flight:
            self._awaiting.append((self._in_flight[-1].batch.step, call))
        else:
            call()

    def tell_kv_events(self) -> None:
        if events := self.kv_events.flush():
            self.on_kv_events(events)

    # The life of a request

    def _begin(self, request: Request, params: Params, on_exported: OnExported | None) -> None:
        wanted = self._prepare(request, params)
        each = self._open[request.request_id] = _Open(request, wanted, on_exported)
        if on_exported is not None:
            self.exports.begin(wanted)
        self.imports.begin(wanted, lambda pulled: self._queue(each))
        self.on_wake()

    def _prepare(self, request: Request, params: Params) -> KvRequest:
        self.check(request)
        try:
            self.connector.check(params)
        except KvTransferError as error:
            raise RequestError("params", params, str(error)) from error
        extras = Extras(salt=request.cache_salt or "")
        hashes = tuple(self.scheduler.prompt_hashes(request.token_ids, extras))
        size = self.config.engine.block_size
        prompt = request.prompt_token_ids
        return KvRequest(request.request_id, prompt, hashes, size, extras, dict(params))

    def _queue(self, each: _Open) -> None:
        if self._open.get(each.request.request_id) is not each:
            return  # aborted while its blocks were coming
        self._last_seq_id += 1
        each.seq_id = self._last_seq_id
        self._by_seq[each.seq_id] = each
        self.scheduler.add(Sequence.of(each.request, each.request.params, each.seq_id))
        self._wake()

    def _close(self, each: _Open, reason: str) -> None:
        """A request has ended; `reason` tells why, when it did so early."""
        del self._open[each.request.request_id]
        self._by_seq.pop(each.seq_id, None)
        began = self.imports.end(each.wanted)
        if each.on_exported is not None:
            exported = self.exports.finish(each.wanted, reason)
            each.on_exported(replace(exported, num_cached_tokens=each.num_cached_tokens))
        elif began:
            self.connector.finish(each.wanted)

    # A step

    def _launch(self, now: float) -> None:
        """Keep the device busy: one batch that runs, and one behind it with async scheduling."""
        self._launch_at = None
        while len(self._in_flight) < self._depth:
            batch = self.scheduler.next_batch()
            if batch is None:
                break
            begins_at = self._in_flight[-1].ends_at if self._in_flight else now
            output = self._device.execute(batch)
            self._in_flight.append(_Flight(batch, output, begins_at + output.seconds))
        self.is_stalled = not self._in_flight and self.scheduler.has_work
        if self.is_stalled:
            self._after_step()
            self._launch_at = now + _STALLED_S

    def _advance(self, now: float) -> list[OutputDelta]:
        """End the oldest batch."""
        flight = self._in_flight.popleft()
        self._steps.record(flight.batch.num_tokens, flight.output.seconds)
        deltas, ended = [], []
        for progress in self.scheduler.settle(flight.batch, flight.output):
            each = self._by_seq[progress.seq_id]
            each.num_cached_tokens = max(each.num_cached_tokens, progress.num_cached_tokens)
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
                each.seq_id = 0
                ended.append(each)
        while self._awaiting and self._awaiting[0][0] <= flight.batch.step:
            self._awaiting.pop(0)[1]()
        self._after_step()
        for each in ended:
            self._close(each, "")
        self._launch_at = now
        return deltas

    def _after_step(self) -> None:
        self.exports.after_step()
        self.imports.after_step()
        self.tell_kv_events()

    def _wake(self) -> None:
        """Something may be able to run now."""
        if not self._in_flight:  # else when a batch ends, as in an engine
            self._launch_at = self.now()
        self.on_wake()

    def _post(self, call: Callable[[], None]) -> None:
        self._agenda.at(self.now(), call)
        self._wake()


def _check_wishes(request: Request) -> None:
    params = request.params
    for name, value, only in (
        ("n", params.n, 1),
        ("logprobs", params.logprobs, None),
        ("prompt_logprobs", params.prompt_logprobs, None),
        ("structured", params.structured, None),
        ("embed", params.embed, False),
        ("lora", request.lora, None),
    ):
        if value != only:
            raise RequestError(name, value, f"must be {only}: a mock worker has no model")


def _check_tokens(tokens: list[int], vocab_size: int) -> None:
    try:
        array("I", tokens)  # takes whole numbers only, and looks at each in C
    except (TypeError, OverflowError) as error:
        raise RequestError("prompt_token_ids", tokens, f"must be token ids: {error}") from None
    if max(tokens) >= vocab_size:
        remedy = f"must be in 0..{vocab_size - 1}"
        raise RequestError("prompt_token_ids", max(tokens), remedy)
