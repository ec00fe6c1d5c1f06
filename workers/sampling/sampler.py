"""From a step's logits to its tokens, for all sequences at once.

The sampler keeps what each sequence needs (counts, grammar, place in its random numbers) and moves
it on by itself, so that the next step can be on its way before anyone has seen this one's tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from stafette.workers.batch import NewSeq, Sampled, TokenLogprobs
from stafette.workers.sampling.adjusting import adjust, adjusts
from stafette.workers.sampling.drawing import BAD_ROW, Rules, argmax, draw
from stafette.workers.sampling.logits import Logits
from stafette.workers.sampling.logprobs import token_logprobs
from stafette.workers.sampling.placing import wrap
from stafette.workers.sampling.state import SequenceState
from stafette.workers.sampling.structured import GrammarCompiler

_SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Where a sequence's logits are: one row for the next token, one more behind each draft."""

    seq_id: int
    first_row: int
    drafts: list[int]


class Sampler:
    """Owns the sampling state of every sequence that runs; used by one thread at a time."""

    def __init__(
        self, eos_token_ids: tuple[int, ...], grammars: GrammarCompiler | None, seed: int
    ) -> None:
        self.eos_token_ids = eos_token_ids
        self.grammars = grammars
        self._seed = seed
        self._num_added = 0
        self._states: dict[int, SequenceState] = {}

    def add(self, seq: NewSeq) -> None:
        """Learn a sequence, with the output that it has; one known by this id is replaced."""
        own_seed = self._seed << _SEED_BITS | self._num_added
        self._num_added += 1
        self._states[seq.seq_id] = SequenceState(seq, own_seed, self.eos_token_ids, self.grammars)

    def remove(self, seq_id: int) -> None:
        """Forget a sequence. Does nothing when there is none."""
        self._states.pop(seq_id, None)

    def sample(
        self, logits: torch.Tensor, rows: Sequence[SampleRow]
    ) -> tuple[dict[int, Sampled], dict[int, str]]:
        """Return each sequence's new tokens, or why it failed. `logits` stay as they are.

        Drafts are taken while they are what would have been sampled, at any temperature.
        """
        runs = [_Run(row, self._states[row.seq_id]) for row in rows]
        pending = [run for run in runs if run.state.error is None]
        values = wrap(logits)
        while pending:
            self._advance(values, pending)
            pending = [run for run in pending if not run.done]
        failed = {run.row.seq_id: run.state.error for run in runs if run.state.error is not None}
        good = [run for run in runs if run.state.error is None]
        scores = _score(values, good)
        sampled = {run.row.seq_id: Sampled(run.tokens, scores.get(run.row.seq_id)) for run in good}
        return sampled, failed

    def _advance(self, logits: Logits, runs: Sequence["_Run"]) -> None:
        """Choose the tokens that can be chosen now, and move their sequences on."""
        asked = [run.next_places() for run in runs]
        wanted = [place for places in asked for place in places]
        chosen = iter(self._choose(logits, wanted).tolist())
        for run, places in zip(runs, asked, strict=True):
            run.take([next(chosen) for _ in places], logits)

    def _choose(self, logits: Logits, places: Sequence["_Place"]) -> npt.NDArray[np.int64]:
        wanted = self._adjusted(logits, places)
        warm = [i for i, place in enumerate(places) if not place.state.params.greedy]
        if not warm:
            return argmax(wanted)
        if len(warm) == len(places):
            return draw(wanted, _rules(places))
        tokens = np.empty(len(places), np.int64)
        cold = [i for i, place in enumerate(places) if place.state.params.greedy]
        tokens[cold] = argmax(wanted.rows(cold))
        tokens[warm] = draw(wanted.rows(warm), _rules([places[i] for i in warm]))
        return tokens

    def _adjusted(self, logits: Logits, places: Sequence["_Place"]) -> Logits:
        """Return the rows of these places, copied if bias, penalties or a mask change any."""
        rows = logits.rows([place.row for place in places])
        if not any(adjusts(place.state, place.position) for place in places):
            return rows
        changed = rows.copy()
        adjust(changed, [(place.state, place.position) for place in places], self.grammars)
        return changed


@dataclass(frozen=True, slots=True)
class _Place:
    """One token to choose: from this row of logits, for this position of the output."""

    row: int
    state: SequenceState
    position: int


@dataclass(slots=True)
class _Run:
    """One sequence's tokens of this step, as they come to be known."""

    row: SampleRow
    state: SequenceState
    tokens: list[int] = field(default_factory=list)
    done: bool = False

    def next_places(self) -> list[_Place]:
        """Return what can be chosen at once: all, or one where a token's odds await the last."""
        first = self.row.first_row + len(self.tokens)
        count = 1 if self.state.looks_back else 1 + len(self.row.drafts)
        start = self.state.num_outputs
        return [_Place(first + i, self.state, start + i) for i in range(count)]

    def take(self, chosen: Iterable[int], logits: Logits) -> None:
        """Accept tokens up to the first that differs from its draft."""
        for token in chosen:
            self._take_one(token, logits)
            if self.done:
                return

    def _take_one(self, token: int, logits: Logits) -> None:
        index = len(self.tokens)
        if token == BAD_ROW:
            self.state.error = _explain(logits.rows([self.row.first_row + index]))
        else:
            self.tokens.append(token)
            self.state.advance(token)
        drafted = index < len(self.row.drafts) and self.row.drafts[index] == token
        over = token in self.state.last_tokens or self.state.error is not None
        self.done = over or not drafted


def _rules(places: Sequence[_Place]) -> Rules:
    params = [place.state.params for place in places]
    return Rules(
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array([p.top_k for p in params], np.int64),
        top_p=np.array([p.top_p for p in params], np.float64),
        min_p=np.array([p.min_p for p in params], np.float64),
        uniform=np.array([place.state.uniform(place.position) for place in places]),
    )


def _score(logits: Logits, runs: Sequence[_Run]) -> dict[int, list[TokenLogprobs]]:
    """Return the log probabilities of the sequences that ask for them, from the raw logits."""
    asking = [run for run in runs if run.state.params.logprobs is not None]
    if not asking:
        return {}
    rows = [run.row.first_row + i for run in asking for i in range(len(run.tokens))]
    chosen = [token for run in asking for token in run.tokens]
    counts = [run.state.params.logprobs or 0 for run in asking for _ in run.tokens]
    scored = iter(token_logprobs(logits.rows(rows), chosen, counts))
    return {run.row.seq_id: [next(scored) for _ in run.tokens] for run in asking}


def _explain(logits: Logits) -> str:
    _, (peak,) = logits.argmax()
    if np.isfinite(peak):
        return "no token is left to choose: loosen structured, logit_bias or min_tokens"
    return "the model's logits hold NaN or infinity: its weights or this prompt break it"
