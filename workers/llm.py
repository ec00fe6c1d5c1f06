"""LLM: the engine for scripts. Give it prompts, wait, and read the answers."""

import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from numbers import Integral
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from stafette.workers.building import build_engine
from stafette.workers.config import EMBEDDED_MODEL, EngineConfig
from stafette.workers.errors import RequestError
from stafette.workers.request import OutputDelta, Request, RequestOutput
from stafette.workers.sampling.params import SamplingParams

Prompt = str | Sequence[int] | Mapping[str, Any]  # text, tokens, or either with a cache_salt


class LLM:
    """`LLM(model=…, **flags).generate(prompts, params)`; the flags are EngineConfig's fields."""

    def __init__(self, model: str = EMBEDDED_MODEL, **flags: Any) -> None:
        self.engine = build_engine(EngineConfig.of(model=model, **flags))
        self.tokenizer = self.engine.tokenizer
        self._ids = count()
        self._streams: dict[str, list[OutputDelta]] = {}  # what open streams have not read yet
        weakref.finalize(self, self.engine.close)  # for who forgets to

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora: str | None = None,
    ) -> list[RequestOutput]:
        """Answer every prompt, in the order given. A wrong one raises before any is run."""
        many = _as_list(prompts)
        wanted = _params_for_each(params, len(many))
        requests = [
            self._request(prompt, each, lora) for prompt, each in zip(many, wanted, strict=True)
        ]
        for request in requests:
            self.engine.check(request)
        return self._run(requests, use_tqdm)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, lora: str | None = None
    ) -> Iterator[OutputDelta]:
        """Answer one prompt piece by piece; leaving the loop early aborts it.

        Several may be open at once, and `generate` may be called between two pieces.
        """
        request = self._request(prompt, params or SamplingParams(), lora)
        self.engine.add(request)
        unread = self._streams[request.request_id] = []
        unfinished = request.params.n
        try:
            while unfinished and (unread or self.engine.has_work):
                if not unread:
                    self._step()
                    continue
                delta = unread.pop(0)
                unfinished -= delta.finish_reason is not None
                yield delta
        finally:
            del self._streams[request.request_id]
            self.engine.abort(request.request_id)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        **template: Any,
    ) -> RequestOutput:
        """Answer a conversation, written with the model's own chat template."""
        prompt = self.chat_prompt(messages, **template)
        return self.generate([prompt], params, use_tqdm=False)[0]

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> Prompt:
        """Return a conversation as a prompt, by the model's own chat template."""
        text = self.tokenizer.apply_chat_template(list(messages), **template)
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        return {"prompt": text, "prompt_token_ids": tokens}

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the logits after every token, float32 [tokens, vocab]. For checks."""
        return self.engine.logits(list(token_ids))

    def load_lora(self, name: str, path: str) -> None:
        """Load a PEFT adapter; `lora=name` answers with it. Needs enable_lora=True."""
        self.engine.adapters.load(name, path)

    def unload_lora(self, name: str) -> None:
        self.engine.adapters.unload(name)

    def close(self) -> None:
        """Free the device. Safe to call twice; EngineDead to whoever asks after it."""
        self.engine.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _request(self, prompt: Prompt, params: SamplingParams, lora: str | None) -> Request:
        text, token_ids = self._tokens(prompt)
        return Request(
            request_id=f"llm-{next(self._ids)}",
            prompt_token_ids=token_ids,
            params=params,
            prompt=text,
            lora=lora,
            cache_salt=prompt.get("cache_salt") if isinstance(prompt, Mapping) else None,
        )

    def _tokens(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt)
        if not isinstance(prompt, Iterable):
            raise RequestError("prompt", prompt, "must be text, token ids, or a mapping of either")
        if not isinstance(prompt, Mapping):
            return None, list(prompt)
        if "prompt_token_ids" in prompt:
            return prompt.get("prompt"), list(prompt["prompt_token_ids"])
        if "prompt" not in prompt:
            remedy = "needs the key prompt or prompt_token_ids"
            raise RequestError("prompt", sorted(prompt), remedy)
        return prompt["prompt"], self.tokenizer.encode(prompt["prompt"])

    def _run(self, requests: list[Request], use_tqdm: bool) -> list[RequestOutput]:
        now = time.monotonic()
        outputs = {request.request_id: RequestOutput.of(request, now) for request in requests}
        try:
            for request in requests:
                self.engine.add(request)
            unfinished = len(requests)
            with _Progress(unfinished, use_tqdm) as progress:
                while self.engine.has_work and (unfinished or not self._streams):
                    deltas = self._step()
                    finished = _book(deltas, outputs)
                    unfinished -= finished
                    progress.show(finished, deltas)
        except BaseException:  # an interrupt too: what was queued must not run in the next call
            for request in requests:
                self.engine.abort(request.request_id)
            raise
        return list(outputs.values())

    def _step(self) -> list[OutputDelta]:
        """Step the engine; keep what belongs to an open stream, return the rest."""
        rest: list[OutputDelta] = []
        for delta in self.engine.step():
            self._streams.get(delta.request_id, rest).append(delta)
        return rest


def _book(deltas: list[OutputDelta], outputs: dict[str, RequestOutput]) -> int:
    """Add the deltas to their outputs; return how many requests they finished."""
    now = time.monotonic()
    finished = 0
    for delta in deltas:
        output = outputs[delta.request_id]
        output.add(delta, now)
        finished += output.metrics.finished is not None
    return finished


class _Progress:
    """A progress bar over requests, with the rate of tokens."""

    def __init__(self, total: int, shown: bool) -> None:
        self._bar = tqdm(total=total, unit="request", disable=not shown)
        self._started = time.monotonic()
        self._tokens = 0

    def show(self, finished: int, deltas: list[OutputDelta]) -> None:
        self._tokens += sum(len(delta.token_ids) for delta in deltas)
        if finished:
            rate = self._tokens / (time.monotonic() - self._started)
            self._bar.set_postfix_str(f"{rate:.0f} output tok/s", refresh=False)
            self._bar.update(finished)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if len(prompts) and isinstance(prompts[0], Integral):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _params_for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise RequestError("params", len(params), f"give one, or one for each of {num_prompts}")
    return list(params)
