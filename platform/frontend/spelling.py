"""Tokens and their log probabilities, as the API shows them."""

from collections.abc import Sequence
from typing import Any

from stafette.workers.batch import TokenLogprobs
from stafette.workers.weights.tokenizer import Tokenizer

_LEAST_LOGPROB = -9999.0  # what OpenAI shows for a token that could not be; JSON has no -inf


class Spelling:
    """Spells tokens. One token may be half a character: `bytes` has it whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes

    def text(self, token: int) -> str:
        return self._bytes[token].decode("utf-8", "replace")

    def chat(self, scores: Sequence[TokenLogprobs], num_top: int) -> list[dict[str, Any]]:
        """Return them in the form of chat completions and responses."""
        return [
            self._entry(score.token_id, score.logprob)
            | {"top_logprobs": [self._entry(*item) for item in _best(score, num_top)]}
            for score in scores
        ]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        spelled = self._bytes[token]
        return {
            "token": spelled.decode("utf-8", "replace"),
            "logprob": finite(logprob),
            "bytes": list(spelled),
        }


class CompletionScores:
    """Collects the form of completions: lists side by side, with each token's place in the text."""

    def __init__(self, spelling: Spelling, num_top: int) -> None:
        self._spelling = spelling
        self._num_top = num_top
        self._offset = 0

    def entries(self, scores: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """Return these tokens', behind all that were asked for before."""
        shown: dict[str, list[Any]] = empty_scores()
        for score in scores:
            self._add(shown, self._spelling.text(score.token_id), finite(score.logprob))
            best = [*_best(score, self._num_top), (score.token_id, score.logprob)]
            top = {self._spelling.text(token): finite(logprob) for token, logprob in best}
            shown["top_logprobs"].append(top)
        return shown

    def prompt_entries(
        self, token_ids: Sequence[int], scores: Sequence[TokenLogprobs]
    ) -> dict[str, list[Any]]:
        """Return an echoed prompt's; nothing predicted its first token."""
        first = empty_scores()
        self._add(first, self._spelling.text(token_ids[0]), None)
        first["top_logprobs"].append(None)
        return joined(first, self.entries(scores))

    def _add(self, shown: dict[str, list[Any]], text: str, logprob: float | None) -> None:
        shown["tokens"].append(text)
        shown["token_logprobs"].append(logprob)
        shown["text_offset"].append(self._offset)
        self._offset += len(text)


def empty_scores() -> dict[str, list[Any]]:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}


def joined(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: first[name] + second[name] for name in first}


def finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


def _best(score: TokenLogprobs, num_top: int) -> list[tuple[int, float]]:
    return sorted(score.top.items(), key=lambda item: -item[1])[:num_top]
