"""Measures an engine in this process, step by step, as its users would see it."""

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.document import Limits
from stafette.platform.profiling.points import Point, steps_of, summary
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.request import OutputDelta, Request
from stafette.workers.sampling.params import SamplingParams

_FIRST_WORD, _LAST_WORD = 100, 20_000  # beside special tokens, in any vocabulary
_SETTLING_STEPS = 2  # after a batch has changed
_STEPS_A_SAMPLE = 4  # two are under way at once, and may come back together


class Steppable(Protocol):
    """What is needed of `stafette.workers.engine.Engine`."""

    @property
    def has_work(self) -> bool: ...

    @property
    def vocab_size(self) -> int: ...

    def add(self, request: Request) -> None: ...

    def step(self) -> list[OutputDelta]: ...

    def abort(self, request_id: str) -> bool: ...


class EngineTarget:
    """`subject`, `limits` and `base` tell of the engine; times are those of `clock`."""

    def __init__(
        self,
        engine: Steppable,
        subject: Mapping[str, Any],
        limits: Limits,
        base: Profile,
        *,
        samples: int = 3,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.subject, self.limits, self.base = subject, limits, base
        self._engine, self._samples, self._clock = engine, samples, clock
        self._words = random.Random(0)
        self._names = itertools.count()
        self._last_word = min(_LAST_WORD, engine.vocab_size - 1)
        self._first_word = min(_FIRST_WORD, self._last_word // 2)
        self._warm = False

    def prefill(self, new_tokens: int, cached_tokens: int) -> Point:
        """Measure the time to the first token, with nothing else under way."""
        self._warm_up()
        prefix = self._prompt(cached_tokens)
        if prefix:
            self._first_token([*prefix, *self._prompt(1)])
        seconds = []
        for _ in range(self._samples):
            took, found = self._first_token([*prefix, *self._prompt(new_tokens)])
            if found != cached_tokens:
                remedy = f"the engine found {found} cached: set enable_prefix_caching and room"
                raise InvalidSetting("--shares", f"{cached_tokens} tokens", remedy)
            seconds.append(took)
        steps = steps_of(new_tokens, self.limits.max_num_batched_tokens)
        point: dict[str, Any] = {
            "prompt_tokens": new_tokens,
            "cached_tokens": cached_tokens,
            "steps": steps,
        }
        return Point(kind="prefill", **summary(seconds), **point)

    def decode(self, batches: Sequence[int], context_tokens: int) -> list[Point]:
        """Fill the largest batch, and measure it smaller and smaller."""
        self._warm_up()
        ordered = sorted(batches, reverse=True)
        batch = _Batch(self._engine, self._clock)
        for _ in range(ordered[0]):
            room = self.limits.max_model_len - context_tokens
            batch.add(self._request(self._prompt(context_tokens), room))
        points = []
        try:
            batch.wait_until_all_decode()
            for size in ordered:
                batch.shrink(size)
                points.append(batch.measure(context_tokens, 2 * self._samples))
        finally:
            batch.shrink(0)
        return points

    def _warm_up(self) -> None:
        """Let be made what is made at first use."""
        if not self._warm:
            self._warm = True
            self._first_token(self._prompt(min(64, self.limits.max_model_len // 2)))

    def _first_token(self, prompt: list[int]) -> tuple[float, int]:
        """Return the seconds until a token came, and how much of the prompt was cached."""
        began = self._clock()
        self._engine.add(self._request(prompt, 1))
        while self._engine.has_work:
            for delta in self._engine.step():
                if delta.token_ids:
                    took, found = self._clock() - began, delta.num_cached_tokens
                    _run_out(self._engine)
                    return took, found
        raise InvalidSetting("engine", "no answer", "it ended a request without a token")

    def _prompt(self, tokens: int) -> list[int]:
        return [self._words.randint(self._first_word, self._last_word) for _ in range(tokens)]

    def _request(self, prompt: list[int], max_tokens: int) -> Request:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        name = f"profile-{next(self._names)}"
        return Request(request_id=name, prompt_token_ids=prompt, params=params, detokenize=False)


class _Batch:
    """Sequences that decode together, and how long each has become."""

    def __init__(self, engine: Steppable, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock
        self._lengths: dict[str, int] = {}
        self._waiting: set[str] = set()  # for their first token

    def add(self, request: Request) -> None:
        self._engine.add(request)
        self._lengths[request.request_id] = len(request.prompt_token_ids)
        self._waiting.add(request.request_id)

    def wait_until_all_decode(self) -> None:
        while self._waiting:
            self._step()

    def shrink(self, size: int) -> None:
        for name in list(self._lengths)[size:]:
            self._engine.abort(name)
            del self._lengths[name]
            self._waiting.discard(name)
        if not self._lengths:
            _run_out(self._engine)

    def measure(self, context_tokens: int, samples: int) -> Point:
        for _ in range(_SETTLING_STEPS):
            self._step()
        seconds, kv_tokens = [], 0
        for _ in range(samples):
            began = self._clock()
            for _ in range(_STEPS_A_SAMPLE):
                kv_tokens += sum(self._lengths.values())
                self._step()
            seconds.append((self._clock() - began) / _STEPS_A_SAMPLE)
        point: dict[str, Any] = {"batch": len(self._lengths), "context_tokens": context_tokens}
        point["kv_tokens"] = kv_tokens // (samples * _STEPS_A_SAMPLE)
        return Point(kind="decode", **summary(seconds), **point)

    def _step(self) -> None:
        for delta in self._engine.step():
            if delta.finish_reason is not None:
                remedy = "ended while it was measured: choose --contexts further below the limit"
                raise InvalidSetting("max_model_len", delta.request_id, remedy)
            if delta.request_id in self._lengths:
                self._lengths[delta.request_id] += len(delta.token_ids)
                self._waiting.discard(delta.request_id)


def _run_out(engine: Steppable) -> None:
    """Let end what is on its way: the next measurement shall have the engine for itself."""
    while engine.has_work:
        engine.step()
