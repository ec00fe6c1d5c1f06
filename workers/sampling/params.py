"""SamplingParams: how one request wants its tokens chosen, in vLLM's and OpenAI's names."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from stafette.workers.errors import RequestError

StructuredKind = Literal["json_schema", "json_object", "regex", "grammar", "choice"]

_GREEDY_BELOW = 1e-5  # colder than this, float32 cannot tell the distribution from its maximum
_MAX_BIAS = 100.0
_MAX_PENALTY = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """The language that the answer must belong to."""

    kind: StructuredKind
    value: str = ""  # the schema as JSON, the regex, the Lark grammar, the choices as a JSON list

    def __post_init__(self) -> None:
        if self.kind not in get_args(StructuredKind):
            remedy = f"must be one of {', '.join(get_args(StructuredKind))}"
            raise RequestError("structured.kind", self.kind, remedy)
        if not isinstance(self.value, str):
            raise RequestError("structured.value", self.value, "must be a string")
        if not self.value and self.kind != "json_object":
            raise RequestError("structured.value", self.value, f"must hold the {self.kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Checked when made; `check_against` adds what only the engine knows.

    `stop` may be given as one string or any sequence; -1 stands for 0 in `top_k`.
    """

    n: int = 1
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    max_tokens: int | None = 16  # None: up to max_model_len
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured: StructuredOutput | None = None
    skip_special_tokens: bool = True
    embed: bool = False  # also return the mean of the prompt's hidden states

    def __post_init__(self) -> None:
        self._normalise()
        self._check_numbers()
        self._check_counts()
        self._check_lists()
        self._check_together()

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW

    @property
    def penalizes(self) -> bool:
        """Whether the tokens before this one change the odds of the next."""
        neutral = (1.0, 0.0, 0.0)
        return neutral != (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)

    @property
    def scores_prompt(self) -> bool:
        """Whether something is wanted of every prompt token, so that none may come from a cache."""
        return self.prompt_logprobs is not None or self.embed

    def check_against(
        self, *, vocab_size: int, max_logprobs: int, max_model_len: int, prompt_len: int
    ) -> None:
        """Check what only the engine knows. RequestError names the first field that is wrong."""
        for name, tokens in (
            ("stop_token_ids", self.stop_token_ids),
            ("logit_bias", self.logit_bias),
        ):
            for token in tokens:
                if not 0 <= token < vocab_size:
                    remedy = f"a token id must be in 0..{vocab_size - 1}, the model's vocabulary"
                    raise RequestError(name, token, remedy)
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(self, name) or 0) > max_logprobs:
                remedy = f"must be at most max_logprobs = {max_logprobs}"
                raise RequestError(name, getattr(self, name), remedy)
        self._check_length(max_model_len, prompt_len)

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as plain values that msgpack takes."""
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {name: _plain(value) for name, value in shown.items() if value != _DEFAULTS[name]}
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SamplingParams":
        """Return the parameters that `to_dict` (or a client's JSON) described."""
        known = dict(values)
        for name in known:
            if name not in _DEFAULTS:
                raise RequestError(name, known[name], "is not a sampling parameter")
        if isinstance(known.get("structured"), Mapping):
            known["structured"] = StructuredOutput(**known["structured"])
        return cls(**known)

    def _normalise(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        pairs = self.logit_bias or ()
        bias = dict(pairs.items() if isinstance(pairs, Mapping) else pairs)
        _set(self, "stop", stop)
        _set(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        _set(self, "top_k", 0 if self.top_k == -1 else self.top_k)
        try:
            _set(self, "logit_bias", {int(token): float(value) for token, value in bias.items()})
        except (TypeError, ValueError):
            remedy = "must map token ids to numbers"
            raise RequestError("logit_bias", self.logit_bias, remedy) from None

    def _check_numbers(self) -> None:
        _check(self, "temperature", lambda value: value >= 0, "must be 0 (greedy) or more")
        _check(self, "top_p", lambda value: 0 < value <= 1, "must be above 0 and at most 1")
        _check(self, "min_p", lambda value: 0 <= value <= 1, "must be in 0..1")
        _check(self, "repetition_penalty", lambda value: value > 0, "must be above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(self, name, lambda value: abs(value) <= _MAX_PENALTY, "must be in -2..2")

    def _check_counts(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not _is_whole(value) or value < least:
                remedy = f"must be a whole number of at least {least}"
                raise RequestError(name, value, remedy)
        if self.seed is not None and not (_is_whole(self.seed) and -(2**63) <= self.seed < 2**64):
            raise RequestError("seed", self.seed, "must be a whole number of at most 64 bits")

    def _check_lists(self) -> None:
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError("stop", self.stop, "must hold strings that are not empty")
        for token in self.stop_token_ids:
            if not _is_whole(token):
                raise RequestError("stop_token_ids", token, "must hold token ids")
        for token, bias in self.logit_bias.items():
            if not abs(bias) <= _MAX_BIAS:
                raise RequestError("logit_bias", {token: bias}, "a bias must be in -100..100")

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            remedy = f"must not exceed max_tokens = {self.max_tokens}"
            raise RequestError("min_tokens", self.min_tokens, remedy)
        if self.structured is not None and self.ignore_eos:
            remedy = "must be off with structured output, which ends where its language ends"
            raise RequestError("ignore_eos", True, remedy)

    def _check_length(self, max_model_len: int, prompt_len: int) -> None:
        if prompt_len < 1:
            raise RequestError("prompt", [], "must hold at least one token")
        room = max_model_len - prompt_len
        if room < 1:
            remedy = f"must be shorter than max_model_len = {max_model_len}; shorten it"
            raise RequestError("prompt", f"{prompt_len} tokens", remedy)
        if self.min_tokens > room:
            remedy = f"must be at most {room}, what max_model_len leaves after the prompt"
            raise RequestError("min_tokens", self.min_tokens, remedy)


_LEAST = {
    "n": 1,
    "top_k": 0,
    "max_tokens": 1,
    "min_tokens": 0,
    "logprobs": 0,
    "prompt_logprobs": 0,
}
_OPTIONAL = {"max_tokens", "logprobs", "prompt_logprobs"}


def _set(params: SamplingParams, name: str, value: object) -> None:
    object.__setattr__(params, name, value)  # the way of a frozen dataclass to settle its fields


def _is_whole(value: object) -> bool:
    return type(value) is int or (isinstance(value, int) and not isinstance(value, bool))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(
    params: SamplingParams, name: str, allowed: Callable[[float], bool], remedy: str
) -> None:
    value = getattr(params, name)
    # Their very types first: every request passes here twice.
    number = type(value) in (float, int) or _is_number(value)
    if not number or not math.isfinite(value) or not allowed(value):
        raise RequestError(name, value, remedy)


def _plain(value: object) -> object:
    """Return `value` without tuples, nor maps whose keys msgpack would refuse to read."""
    if isinstance(value, StructuredOutput):
        return {"kind": value.kind, "value": value.value}
    if isinstance(value, dict):
        return [[token, bias] for token, bias in value.items()]
    return list(value) if isinstance(value, tuple) else value


_DEFAULTS = {f.name: getattr(SamplingParams(), f.name) for f in fields(SamplingParams)}
