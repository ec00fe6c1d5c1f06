"""The engine's core: requests in, one step at a time, deltas out. Used by one thread.

The executor runs in a thread of its own, so that an interrupt never tears a step apart. With async
scheduling a second batch is prepared while the first one runs.
"""

import dataclasses
from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from stafette.kvtransfer.blocks import Extras
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.events import EventBatch
from stafette.kvtransfer.histogram import Histogram
from stafette.workers.adapters import Adapters
from stafette.workers.batch import Batch, StepOutput
from stafette.workers.config import EngineConfig
from stafette.workers.errors import EngineDead, RequestError
from stafette.workers.executor import Executor
from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.output import OutputProcessor
from stafette.workers.request import OutputDelta, Request
from stafette.workers.request_times import RequestTimes
from stafette.workers.sampling.structured import GrammarCompiler
from stafette.workers.scheduler import Scheduler
from stafette.workers.sequence import Sequence
from stafette.workers.stats import EngineStats, StepClock
from stafette.workers.step_samples import StepSamples
from stafette.workers.weights.tokenizer import Tokenizer

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """What an engine is made of; `stafette.workers.building` makes them for its flags."""

    pool: BlockPool
    kv_events: EventLog
    scheduler: Scheduler
    executor: Executor
    tokenizer: Tokenizer
    grammars: GrammarCompiler


class Engine:
    """Joins its parts. `on_kv_events` is called after each step that changed what is cached.

    A hand-over hears the same first, in `on_cache_change`; and, in `after_step`, of the end of
    every step, also of one that could do nothing.
    """

    def __init__(self, config: EngineConfig, parts: EngineParts) -> None:
        self.config = config
        self.pool = parts.pool
        self.kv_events = parts.kv_events
        self.on_kv_events: Callable[[EventBatch], None] = lambda batch: None
        self.on_cache_change: Callable[[EventBatch], None] = lambda batch: None
        self.after_step: Callable[[], None] = lambda: None
        self.is_stalled = False  # the last step found work, but no blocks for it: others hold them
        self.scheduler = parts.scheduler
        self.executor = parts.executor
        self.tokenizer = parts.tokenizer
        self.grammars = parts.grammars
        self._outputs = OutputProcessor(parts.tokenizer)
        self._answers: dict[str, _Open] = {}  # by request id
        self._device = ThreadPoolExecutor(1, thread_name_prefix="stafette-device")
        self._in_flight: deque[tuple[Batch, Future[StepOutput]]] = deque()
        self._awaiting: list[tuple[int, Callable[[], None]]] = []  # until which batch is settled
        self._depth = 2 if config.async_scheduling else 1
        self._next_seq_id = 0
        self._clock = StepClock()
        self.samples = StepSamples()  # others may read them
        self.times = RequestTimes()  # and these
        self._ended: EngineDead | None = None
        self.adapters = Adapters(config, parts.executor.runner, self.call_on_device)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    def add(self, request: Request) -> None:
        """Queue a request; RequestError, with nothing queued, when it cannot be served."""
        self.check(request)
        open_answers = _Open(request.lora)
        for index in range(request.params.n):
            seq = self._sequence(request, index)
            self.scheduler.add(seq)
            self.times.arrived(seq.seq_id)
            self._outputs.open(seq.seq_id, request, index)
            open_answers.seq_ids.add(seq.seq_id)
        self.adapters.hold(request.lora)
        self._answers[request.request_id] = open_answers

    def check(self, request: Request) -> None:
        """Raise RequestError when this request could not be served. Safe from any thread."""
        self._raise_if_ended()
        if request.request_id in self._answers:
            remedy = "is in flight already: choose another id"
            raise RequestError("request_id", request.request_id, remedy)
        _check_prompt(request.token_ids, self.vocab_size, self.max_model_len)
        request.params.check_against(
            vocab_size=self.vocab_size,
            max_logprobs=self.config.max_logprobs,
            max_model_len=self.max_model_len,
            prompt_len=len(request.prompt_token_ids),
        )
        self.adapters.find(request.lora)
        if request.params.structured is not None:
            self.grammars.validate(request.params.structured)

    def abort(self, request_id: str) -> bool:
        """Forget a request; its blocks are free once the step that runs has ended."""
        answers = self._answers.pop(request_id, None)
        if answers is None:
            return False
        for seq_id in answers.seq_ids:
            self.scheduler.abort(seq_id)
            self._outputs.close(seq_id)
            self.times.forget(seq_id)
        self.adapters.release(answers.lora)
        return True

    def step(self) -> list[OutputDelta]:
        """Send what can be sent, wait for the oldest batch, return what it brought."""
        self._raise_if_ended()
        self._launch()
        self.is_stalled = not self._in_flight and self.scheduler.has_work
        deltas = self._advance() if self._in_flight else []
        self.after_step()
        self.tell_kv_events()
        return deltas

    def tell_kv_events(self) -> None:
        """Pass on what has changed in the cache since the last time."""
        if events := self.kv_events.flush():
            self.on_cache_change(events)
            self.on_kv_events(events)

    def when_settled(self, call: Callable[[], None]) -> None:
        """Call back when the batches that are on their way now are settled; at once without any."""
        if self._in_flight:
            self._awaiting.append((self._in_flight[-1][0].step, call))
        else:
            call()

    def prompt_hashes(self, request: Request) -> tuple[tuple[bytes, ...], Extras]:
        """Return the hashes under which a prompt's blocks are found, and what else is in them."""
        extras = self._extras(request)
        return tuple(self.scheduler.prompt_hashes(request.token_ids, extras)), extras

    def is_waiting(self, request_id: str) -> bool | None:
        """Whether a request was not admitted yet; None: it is not here."""
        answers = self._answers.get(request_id)
        if answers is None:
            return None
        return not any(map(self.scheduler.was_admitted, answers.seq_ids))

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Return the logits after every token, float32 [tokens, vocab]. For checks."""
        _check_prompt(token_ids, self.vocab_size, self.max_model_len + 1)
        blocks = self.pool.try_allocate(-(-len(token_ids) // self.config.block_size))
        if blocks is None:
            remedy = f"tokens need more than the {self.pool.num_available} KV blocks left: wait"
            raise RequestError("token_ids", len(token_ids), remedy)
        try:
            chunk = self.config.max_num_batched_tokens
            return self.call_on_device(lambda: self.executor.logits(token_ids, blocks, chunk))
        finally:
            self.pool.release(blocks)

    def reset_prefix_cache(self) -> None:
        """Forget every prefix; what runs goes on."""
        self.pool.reset_prefix_cache()
        self.tell_kv_events()

    def call_on_device(self, function: Callable[[], Result]) -> Result:
        """Run something between two steps, where the executor runs."""
        self._raise_if_ended()
        return self._device.submit(function).result()

    def stats(self) -> EngineStats:
        return self._clock.stats(self.scheduler.stats())

    @property
    def step_seconds(self) -> Histogram:
        return self._clock.step_seconds

    def close(self) -> None:
        """Free the device, once the step that runs has ended. Safe to call twice."""
        self._ended = self._ended or EngineDead("engine", "closed", "make another one")
        self._device.shutdown(wait=True, cancel_futures=True)
        self.executor.runner.close()

    @property
    def vocab_size(self) -> int:
        return self.executor.runner.spec.vocab_size

    @property
    def max_model_len(self) -> int:
        return self.scheduler.config.max_model_len

    def _launch(self) -> None:
        while len(self._in_flight) < self._depth:
            batch = self.scheduler.next_batch()
            if batch is None:
                return
            self.times.admitted(seq.seq_id for seq in batch.added)
            future = self._device.submit(partial(self.executor.execute, batch))
            self._in_flight.append((batch, future))

    def _advance(self) -> list[OutputDelta]:
        """Wait for the oldest batch; return what it brought."""
        batch, future = self._in_flight[0]
        output = self._wait_for(future)
        self._in_flight.popleft()  # only now: who interrupts the wait may step again
        self._clock.record(batch.num_tokens, output.seconds)
        self.samples.add(batch.seqs, output.seconds)
        deltas = self._settle(batch, output)
        while self._awaiting and self._awaiting[0][0] <= batch.step:
            self._awaiting.pop(0)[1]()
        return deltas

    def _wait_for(self, future: Future[StepOutput]) -> StepOutput:
        try:
            return future.result()
        except Exception as error:
            self._ended = EngineDead("engine", repr(error), "the step failed: restart the engine")
            raise self._ended from error

    def _raise_if_ended(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _settle(self, batch: Batch, output: StepOutput) -> list[OutputDelta]:
        deltas = []
        for progress in self.scheduler.settle(batch, output):
            delta = self._outputs.process(progress)
            if delta is None:
                continue
            self.times.answered(progress.seq_id)
            if delta.finish_reason is not None:
                self._finish(progress.seq_id, delta, ended_by_text=progress.finish_reason is None)
            deltas.append(delta)
        return deltas

    def _finish(self, seq_id: int, delta: OutputDelta, ended_by_text: bool) -> None:
        if ended_by_text:  # a stop string, which the scheduler knows nothing of
            self.scheduler.abort(seq_id)
        self._outputs.close(seq_id)
        self.times.finished(seq_id)
        answers = self._answers[delta.request_id]
        answers.seq_ids.remove(seq_id)
        if not answers.seq_ids:
            del self._answers[delta.request_id]
            self.adapters.release(answers.lora)

    def _sequence(self, request: Request, index: int) -> Sequence:
        params = request.params
        if params.seed is not None and index:
            params = dataclasses.replace(params, seed=params.seed + index)
        self._next_seq_id += 1
        seq = Sequence.of(request, params, self._next_seq_id)
        seq.lora_slot = self.adapters.find(request.lora).slot
        seq.extras = self._extras(request)
        return seq

    def _extras(self, request: Request) -> Extras:
        identity = self.adapters.find(request.lora).identity
        return Extras(lora=identity, salt=request.cache_salt or "")


@dataclass(slots=True)
class _Open:
    """A request's sequences that are still at work."""

    lora: str | None
    seq_ids: set[int] = field(default_factory=set)


def _check_prompt(prompt: list[int], vocab_size: int, max_model_len: int) -> None:
    if not prompt:
        raise RequestError("prompt", prompt, "is empty: send at least one token")
    if len(prompt) >= max_model_len:
        remedy = f"tokens leave no room for an answer: max_model_len is {max_model_len}"
        raise RequestError("prompt", len(prompt), remedy)
    _check_whole(prompt)
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        bad = next(token for token in prompt if not 0 <= token < vocab_size)
        raise RequestError("prompt_token_ids", bad, f"must be in 0..{vocab_size - 1}")


def _check_whole(tokens: list[int]) -> None:
    try:
        array("q", tokens)  # takes whole numbers only, and looks at each in C
    except (TypeError, OverflowError) as error:
        raise RequestError("prompt_token_ids", tokens, f"must be token ids: {error}") from None
