"""Text to tokens and back: the one tokenizer that the whole engine uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from encodings import utf_8
from functools import cached_property
from typing import Any

import tokenizers

from stafette.workers.errors import RequestError
from stafette.workers.weights.chat_template import Message, choose_template, render
from stafette.workers.weights.token_bytes import TokenBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSource:
    """What a format's reader finds out."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, …
    eos_token_ids: tuple[int, ...] = ()  # beside that of eos_token
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # by name; the usual: default


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer`; may be used from several threads."""

    def __init__(self, source: TokenizerSource) -> None:
        self.backend = source.backend
        self.special_tokens = dict(source.special_tokens)
        self.chat_templates = dict(source.chat_templates)
        own_eos = self._id_of("eos_token")
        ends = source.eos_token_ids if own_eos is None else (own_eos, *source.eos_token_ids)
        self.eos_token_ids = tuple(dict.fromkeys(ends))
        self.bos_token_id = self._id_of("bos_token")
        self.vocab_size = self.backend.get_vocab_size(with_added_tokens=True)
        self.token_bytes = TokenBytes(self.backend)  # by id; need not be whole characters

    @property
    def has_chat_template(self) -> bool:
        return bool(self.chat_templates)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """The tokens that decoding leaves out unless asked not to."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    def to_json(self) -> str:
        """Return the backend in the form of a tokenizer.json."""
        return self.backend.to_str()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            # A batch of one: `encode` alone would also look where in the text each token is.
            (found,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return found.ids
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError("prompt", text, "must be a string of valid Unicode") from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the conversation as a prompt; encode it with add_special_tokens=False."""
        template = choose_template(self.chat_templates, tools is not None)
        known = self.special_tokens | {"tools": tools, "documents": None} | variables
        return render(template, messages, known | {"add_generation_prompt": add_generation_prompt})

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)


class IncrementalDetokenizer:
    """Turns an answer's tokens into text as they come, never half a character.

    The pieces and `finish()` together are what decoding prompt and answer at once adds to the
    prompt's text. A token costs the same however long the answer is.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._bytes = tokenizer.token_bytes
        self._left_out = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._decoder = utf_8.IncrementalDecoder("replace")
        self._at_start = all(token in self._left_out for token in prompt_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that is certain now."""
        data = b"".join(map(self._spelled, token_ids))
        if data.isascii() and not self._decoder.buffer:  # no character is open: nearly always
            return data.decode()
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return what stands for the character that was never completed, if any."""
        return self._decoder.decode(b"", final=True)

    def _spelled(self, token: int) -> bytes:
        if token in self._left_out:
            return b""
        spelled = self._bytes[token]
        if self._at_start:
            self._at_start = False
            return self._bytes.without_prefix(spelled)
        return spelled
