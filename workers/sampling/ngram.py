"""Drafts for speculative decoding: what followed the last time these words were there."""

from collections.abc import Sequence

from stafette.workers.config import EngineConfig


class NgramProposer:
    """Keeps an index for each sequence, so that a token costs the same however long the text is."""

    def __init__(self, config: EngineConfig) -> None:
        self._sizes = range(config.speculative_ngram_min, config.speculative_ngram_max + 1)
        self._indexes: dict[int, _Index] = {}

    def propose(self, seq_id: int, tokens: Sequence[int], max_drafts: int) -> list[int]:
        """Guess what follows `tokens`, a sequence's prompt and output so far."""
        index = self._indexes.get(seq_id)
        if index is None or index.read > len(tokens):
            index = self._indexes[seq_id] = _Index(self._sizes)
        return index.propose(tokens, max_drafts)

    def forget(self, seq_id: int) -> None:
        """Drop a sequence. Does nothing when there is none."""
        self._indexes.pop(seq_id, None)


def propose(tokens: Sequence[int], k: int, ngram_min: int, ngram_max: int) -> list[int]:
    """Return up to k tokens: those behind the latest earlier copy of the longest ending."""
    return _Index(range(ngram_min, ngram_max + 1)).propose(tokens, k)


class _Index:
    """Where each n-gram was last, but for those that end with the text: they look for others."""

    def __init__(self, sizes: range) -> None:
        self._sizes = sizes
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> position behind its last copy
        self.read = 0  # tokens whose n-grams are in

    def propose(self, tokens: Sequence[int], k: int) -> list[int]:
        self._read(tokens)
        for size in reversed(self._sizes):
            end = self._ends.get(tuple(tokens[-size:])) if size < len(tokens) else None
            if end is not None:
                return list(tokens[end : end + k])
        return []

    def _read(self, tokens: Sequence[int]) -> None:
        for end in range(self.read + 1, len(tokens)):
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(tokens[end - size : end])] = end
        self.read = max(self.read, len(tokens) - 1)
