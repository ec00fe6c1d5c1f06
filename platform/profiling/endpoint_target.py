"""Measures a running server through OpenAI's streaming API, as its clients see it.

Prompts are sent as token ids to /v1/completions, and answers must not end early: that needs
`ignore_eos`, which stafette, vLLM and SGLang know.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.document import Limits
from stafette.platform.profiling.points import Point, steps_of, summary
from stafette.workers.errors import EngineError
from stafette.workers.mocker.speed_profile import Profile

_FIRST_WORD, _LAST_WORD = 1_000, 20_000  # beside special tokens, in any usual vocabulary
_DECODED_TOKENS = 24  # of each stream, at least
_LEAST_GAPS = 4  # while all streams run


class Asking(Protocol):
    """What is needed of `stafette.platform.commands.talking.Asker`."""

    url: str

    def get(self, path: str) -> Any: ...

    def events(self, path: str, body: object) -> Any: ...


class EndpointTarget:
    """`limits` are those that the user tells; the rest is found out."""

    def __init__(
        self,
        asker: Asking,
        model: str | None,
        limits: Limits,
        base: Profile,
        *,
        samples: int = 3,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._asker, self._samples, self._clock = asker, samples, clock
        self._model = model or _only_model(asker)
        self._words = random.Random(0)
        self.subject: Mapping[str, Any] = {
            "kind": "endpoint",
            "model": self._model,
            "url": asker.url,
        }
        self.limits, self.base = limits, base

    def prefill(self, new_tokens: int, cached_tokens: int) -> Point:
        prefix = self._prompt(cached_tokens)
        self._times([*prefix, *self._prompt(1 if prefix else new_tokens)], 1)  # warms, caches
        seconds = []
        for _ in range(self._samples):
            began, first, *_ = self._times([*prefix, *self._prompt(new_tokens)], 1)
            seconds.append(first - began)
        steps = steps_of(new_tokens, self.limits.max_num_batched_tokens)
        point: dict[str, Any] = {
            "prompt_tokens": new_tokens,
            "cached_tokens": cached_tokens,
            "steps": steps,
        }
        return Point(kind="prefill", **summary(seconds), **point)

    def decode(self, batches: Sequence[int], context_tokens: int) -> list[Point]:
        """A batch whose streams never all run at once is more than the server takes."""
        points = []
        for batch in sorted(batches):
            streams = self._together(batch, context_tokens)
            begun = max(times[1] for times in streams)
            ended = min(times[-1] for times in streams)
            inside = [[at for at in times[1:] if begun <= at <= ended] for times in streams]
            if min(map(len, inside)) <= _LEAST_GAPS:
                break
            # Of each stream the mean: an event may bring the tokens of two steps.
            steps = [(times[-1] - times[0]) / (len(times) - 1) for times in inside]
            middle = (begun + ended) / 2
            lengths = [sum(at <= middle for at in times[1:]) for times in streams]
            point: dict[str, Any] = {"batch": batch, "context_tokens": context_tokens}
            kv_tokens = batch * context_tokens + sum(lengths)
            points.append(Point(kind="decode", **summary(steps), **point, kv_tokens=kv_tokens))
        return points

    def _together(self, batch: int, context_tokens: int) -> list[list[float]]:
        """Return the times of streams that begin at once, and are long enough to overlap."""
        steps = steps_of(batch * context_tokens, self.limits.max_num_batched_tokens)
        prompts = [self._prompt(context_tokens) for _ in range(batch)]
        found: list[list[float]] = []
        errors: list[EngineError] = []

        def ask(prompt: list[int]) -> None:
            try:
                found.append(self._times(prompt, _DECODED_TOKENS + steps))
            except EngineError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return found

    def _times(self, prompt: list[int], max_tokens: int) -> list[float]:
        """Return when it was asked, and when each token came."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
        }
        times = [self._clock()]
        for event in self._asker.events("/v1/completions", body):
            if event.get("choices"):
                times.append(self._clock())
        if len(times) < 2 or (max_tokens > 1 and len(times) < max_tokens // 2):
            remedy = f"ended after {len(times) - 1} tokens of {max_tokens}: does it ignore_eos?"
            raise InvalidSetting("--url", self._asker.url, remedy)
        return times

    def _prompt(self, tokens: int) -> list[int]:
        return [self._words.randint(_FIRST_WORD, _LAST_WORD) for _ in range(tokens)]


def _only_model(asker: Asking) -> str:
    """Return the model that is served; InvalidSetting when there are several."""
    try:
        names = [str(each["id"]) for each in asker.get("/v1/models")["data"]]
    except (KeyError, TypeError, ValueError):
        remedy = "does not list its models as OpenAI's API does: is it a language model's?"
        raise InvalidSetting("--url", asker.url, remedy) from None
    if len(names) != 1:
        remedy = f"must be named: the server has {', '.join(names) or 'none'}"
        raise InvalidSetting("--model", None, remedy)
    return names[0]
