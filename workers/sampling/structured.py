"""Structured output: keeps an answer within a JSON schema, a regex, a grammar or a list of choices.

A grammar is compiled once (off the hot path, by `validate`) and copied for each sequence; a step
then costs one bit mask over the vocabulary for each such sequence.
"""

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher, LLTokenizer, regex_to_lark
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

from stafette.workers.errors import RequestError
from stafette.workers.sampling.params import StructuredOutput
from stafette.workers.sampling.schemas import endless

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_CACHED_GRAMMARS = 256
# One blank, or one line break and its indentation: a model that likes blanks would never end.
_JSON_OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": r"[ \t]|\r?\n[ \t]{0,32}"}


class Matcher:
    """Where one sequence stands in its grammar."""

    def __init__(self, inner: LLMatcher) -> None:
        self.inner = inner

    @property
    def finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self.inner.is_stopped()

    @property
    def error(self) -> str | None:
        return _first_line(self.inner.get_error()) if self.inner.is_error() else None

    def accept(self, token: int) -> None:
        """Take a token that the mask allowed; any other one leaves an `error`."""
        if not self.inner.is_stopped():
            self.inner.consume_token(token)


class GrammarCompiler:
    """Turns StructuredOutput into matchers for one tokenizer. Safe to share between threads."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._compiled = functools.lru_cache(_CACHED_GRAMMARS)(self._compile)

    def validate(self, structured: StructuredOutput) -> None:
        """Compile now. RequestError when the language is malformed, unsupported or empty."""
        self._compiled(structured)

    def matcher(self, structured: StructuredOutput) -> Matcher:
        """Return a matcher at the start of its grammar."""
        return Matcher(self._compiled(structured).deep_copy())

    def masks(self, matchers: Sequence[Matcher]) -> npt.NDArray[np.bool_]:
        """Return the tokens that may come next, [matchers, vocabulary]."""
        bits = allocate_token_bitmask(len(matchers), self._vocab_size)
        pairs = [(matcher.inner, row) for row, matcher in enumerate(matchers)]
        fill_next_token_bitmask_par(self._executor, pairs, bits)
        flags = np.unpackbits(bits.view(np.uint8), axis=-1, bitorder="little")
        return flags[:, : self._vocab_size].view(np.bool_)

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        ends = self._eos_token_ids
        return LLTokenizer(self._tokenizer_json, n_vocab=self._vocab_size, eos_token=ends)

    @functools.cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor()

    def _compile(self, structured: StructuredOutput) -> LLMatcher:
        if not self._eos_token_ids:
            remedy = "needs a model that has an end token: leave it out"
            raise RequestError("structured", structured.kind, remedy)
        grammar = _grammar(structured)
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        if failed:
            raise _refusal(structured, messages[0])
        matcher = LLMatcher(self._tokenizer, grammar)
        allowed = self.masks([Matcher(matcher)])  # the first mask is the dearest: made once
        if matcher.is_error() or not allowed.any():
            raise _refusal(structured, "no text matches it")
        return matcher


def _grammar(structured: StructuredOutput) -> str:
    match structured.kind:
        case "json_schema":
            return _from_schema(structured)
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, defaults=_JSON_OPTIONS)
        case "regex":
            return _from_regex(structured.value)
        case "grammar":
            return LLMatcher.grammar_from_lark(structured.value)
        case "choice":
            return LLMatcher.grammar_from_lark(_alternatives(structured))


def _from_schema(structured: StructuredOutput) -> str:
    schema = _parsed(structured)
    if not isinstance(schema, dict | bool):
        raise _refusal(structured, "a schema must be an object or a boolean")
    if endless(schema):
        raise _refusal(structured, "no finite value matches it: it requires itself")
    try:
        return LLMatcher.grammar_from_json_schema(structured.value, defaults=_JSON_OPTIONS)
    except ValueError as error:
        raise _refusal(structured, str(error)) from None


def _from_regex(regex: str) -> str:
    ascii_digits = "d"  # \d is 0-9, and not any digit of the newest Unicode
    return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(regex, ascii_digits)}/")


def _alternatives(structured: StructuredOutput) -> str:
    choices = _parsed(structured)
    texts = choices if isinstance(choices, list) else []
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise _refusal(structured, "choices must be a list of strings that are not empty")
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _parsed(structured: StructuredOutput) -> object:
    try:
        return json.loads(structured.value)
    except ValueError as error:
        raise _refusal(structured, f"is not JSON: {error}") from None


def _refusal(structured: StructuredOutput, reason: str) -> RequestError:
    remedy = f"{_summary(reason)}; correct the {structured.kind}"
    return RequestError(f"structured.{structured.kind}", structured.value, remedy)


def _summary(message: str) -> str:
    """Return a compiler's message without the source lines that it quotes."""
    lines = [line.strip() for line in message.splitlines()]
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[0].removeprefix("error: ") if errors else lines[0]


def _first_line(message: str) -> str:
    return message.splitlines()[0] if message else "the matcher failed"
