"""What the sampler remembers of a sequence from one token to the next."""

import hashlib

from stafette.workers.batch import NewSeq
from stafette.workers.errors import RequestError
from stafette.workers.sampling.penalties import TokenCounts
from stafette.workers.sampling.structured import GrammarCompiler, Matcher

_RANDOM_BITS = 53  # what a float holds
_STEP = 2.0**-_RANDOM_BITS


class SequenceState:
    """One sequence: its parameters, how many tokens it has, and what they bring about."""

    def __init__(
        self,
        seq: NewSeq,
        own_seed: int,
        eos_token_ids: tuple[int, ...],
        grammars: GrammarCompiler | None,
    ) -> None:
        self.params = params = seq.params
        self.num_outputs = 0
        self.error: str | None = None
        ends = () if params.ignore_eos else eos_token_ids
        self.last_tokens = frozenset((*ends, *params.stop_token_ids))
        self.held_back = (*eos_token_ids, *params.stop_token_ids)  # until min_tokens are there
        self.counts = TokenCounts(params, seq.prompt_token_ids) if params.penalizes else None
        self.grammar = self._matcher(grammars)
        self._seed = str(own_seed if params.seed is None else params.seed)
        for token in seq.output_token_ids:
            self.advance(token)

    @property
    def looks_back(self) -> bool:
        """Whether a token's odds depend on which tokens came before it."""
        return self.counts is not None or self.grammar is not None

    def uniform(self, position: int) -> float:
        """Return the number in [0, 1) that decides output `position`: a matter of the seed alone.

        Being counted, not drawn in turn, it is the same in any batch, after preemption, on
        another worker, and for a draft whether or not it is verified ahead of its time.
        """
        text = f"{self._seed}/{position}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> (64 - _RANDOM_BITS)) * _STEP

    def advance(self, token: int) -> None:
        """Book a token of the output."""
        self.num_outputs += 1
        if self.counts is not None:
            self.counts.add(token)
        if self.grammar is not None:
            self.grammar.accept(token)
            if self.grammar.error:
                self.error = f"structured: {self.grammar.error}"

    def _matcher(self, grammars: GrammarCompiler | None) -> Matcher | None:
        if self.params.structured is None:
            return None
        if grammars is None:
            self.error = "structured: this engine has no tokenizer to match a grammar with"
            return None
        try:
            return grammars.matcher(self.params.structured)
        except RequestError as error:
            self.error = str(error)
            return None
