"""From a prompt's tokens to its chain of block hashes, a conversation's prompt from where it ended.

A chain is one run of bytes, 16 for each full block.
"""

from collections import OrderedDict
from dataclasses import dataclass

from stafette.kvtransfer.blocks import (
    HASH_BYTES,
    NO_EXTRAS,
    ROOT,
    BlockHasher,
    Extras,
    TokenIds,
    token_words,
)
from stafette.router.errors import InvalidValue

_WORD_BYTES = 4


@dataclass(slots=True)
class _Prompt:
    """The latest prompt of a session."""

    hasher: BlockHasher
    extras: Extras
    words: bytes  # of its full blocks
    chain: bytes


@dataclass(slots=True)
class HashingCounters:
    prompts: int = 0
    blocks: int = 0
    hashed_blocks: int = 0  # of those; the others were known from the session


class Hashers:
    """One hasher for each model, all with the cluster's key and one block size."""

    def __init__(self, key: bytes | str, block_size: int) -> None:
        self.block_size = block_size
        self._key = key
        self._hashers: dict[str, BlockHasher] = {}

    def of(self, model: str) -> BlockHasher:
        hasher = self._hashers.get(model)
        if hasher is None:
            hasher = self._hashers[model] = BlockHasher(self._key, self.block_size, model)
        return hasher


class PromptHasher:
    """Hashes prompts; remembers the latest prompt of the sessions used last."""

    def __init__(self, hashers: Hashers, max_sessions: int = 10_000) -> None:
        if max_sessions < 0:
            raise InvalidValue("max_sessions", max_sessions, "must be at least 0")
        self.hashers = hashers
        self.counters = HashingCounters()
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, _Prompt] = OrderedDict()

    def chain(
        self, tokens: TokenIds, model: str = "", extras: Extras = NO_EXTRAS, session: str = ""
    ) -> bytes:
        """Return the chain of the prompt's full blocks."""
        hasher = self.hashers.of(model)
        step = hasher.block_size * _WORD_BYTES
        words = token_words(tokens)
        words = words[: len(words) // step * step]
        known = self._known(session, hasher, extras, words) if session else b""
        start = len(known) // HASH_BYTES * step
        parent = known[-HASH_BYTES:] or ROOT
        chain = known + hasher.hash_words(words[start:], parent, extras)
        if session:
            self._remember(session, _Prompt(hasher, extras, words, chain))
        self._count(len(words) // step, start // step)
        return chain

    def forget(self, session: str) -> None:
        self._sessions.pop(session, None)

    def _known(self, session: str, hasher: BlockHasher, extras: Extras, words: bytes) -> bytes:
        """Return the chain of the session's latest prompt, if this one goes on behind it."""
        last = self._sessions.get(session)
        if last is None or last.hasher is not hasher or last.extras != extras:
            return b""
        return last.chain if words.startswith(last.words) else b""

    def _remember(self, session: str, prompt: _Prompt) -> None:
        self._sessions[session] = prompt
        self._sessions.move_to_end(session)
        if len(self._sessions) > self._max_sessions:
            self._sessions.popitem(last=False)

    def _count(self, blocks: int, known: int) -> None:
        self.counters.prompts += 1
        self.counters.blocks += blocks
        self.counters.hashed_blocks += blocks - known
