"""Runs batches in order on one runner: flattens them, forwards them, samples their tokens.

It keeps each sequence's newest token, so that the scheduler may send the next batch before it has
seen the tokens of this one.
"""

import time
from collections.abc import Sequence as Seq
from itertools import accumulate

import numpy as np
import torch

from stafette.workers.batch import Batch, SeqStep, StepOutput, TokenLogprobs
from stafette.workers.runner.runner import Runner, StepInputs
from stafette.workers.sampling.logprobs import prompt_logprobs
from stafette.workers.sampling.sampler import Sampler, SampleRow

_SCRATCH = -1  # a sequence that the sampler never hears of


class Executor:
    """Owns the runner and the sampler; used by one thread at a time.

    With `shares_kv` a step has ended only when others can read what it wrote.
    """

    def __init__(self, runner: Runner, sampler: Sampler, shares_kv: bool = False) -> None:
        self.runner = runner
        self.shares_kv = shares_kv
        self.sampler = sampler
        self._last_token: dict[int, int] = {}
        self._prompts: dict[int, _PromptScores] = {}  # of sequences that want prompt_logprobs
        self._means: dict[int, _PromptMean] = {}  # of those that want an embedding
        self._lora_slots: dict[int, int] = {}

    def execute(self, batch: Batch) -> StepOutput:
        started = time.perf_counter()
        self._update_sequences(batch)
        plan = _RowPlan(batch.seqs, self._prompts, self._means)
        tensors = self.runner.forward(self._inputs(batch.seqs, plan.rows, plan.hidden_rows))
        sampled, failed = self.sampler.sample(tensors.logits, plan.sample_rows)
        for seq_id, result in sampled.items():
            self._last_token[seq_id] = result.token_ids[-1]
        if self.shares_kv:
            self.runner.wait_for_kv()
        return StepOutput(
            step=batch.step,
            sampled=sampled,
            prompt_logprobs=self._score_prompts(tensors.logits, plan),
            embeddings=self._embed_prompts(tensors.hidden, plan),
            failed=failed,
            seconds=time.perf_counter() - started,
        )

    def logits(self, token_ids: list[int], blocks: list[int], chunk: int) -> torch.Tensor:
        """Return the logits after every token; `blocks` are scratch that nobody else uses."""
        parts = []
        for start in range(0, len(token_ids), chunk):
            step = SeqStep(_SCRATCH, start, token_ids[start : start + chunk], False, blocks, True)
            rows = list(range(step.num_tokens))
            parts.append(self.runner.forward(self._inputs([step], rows)).logits.clone())
        return torch.cat(parts)

    def _update_sequences(self, batch: Batch) -> None:
        for seq_id in batch.removed:
            self.sampler.remove(seq_id)
            self._last_token.pop(seq_id, None)
            self._prompts.pop(seq_id, None)
            self._means.pop(seq_id, None)
            self._lora_slots.pop(seq_id, None)
        for new in batch.added:
            self.sampler.add(new)
            self._lora_slots[new.seq_id] = new.lora_slot
            if new.params.prompt_logprobs is not None:
                scores = _PromptScores(new.prompt_token_ids, new.params.prompt_logprobs)
                self._prompts[new.seq_id] = scores
            if new.params.embed:
                self._means[new.seq_id] = _PromptMean(len(new.prompt_token_ids))

    def _inputs(
        self, seqs: Seq[SeqStep], logit_rows: list[int], hidden_rows: Seq[int] = ()
    ) -> StepInputs:
        tokens: list[int] = []
        for seq in seqs:
            tokens += seq.tokens
            if seq.from_last:  # 0 when there is none: its sampling failed, and this step is dropped
                tokens.append(self._last_token.get(seq.seq_id, 0))
        lengths = [seq.num_tokens for seq in seqs]
        starts = np.fromiter((seq.start for seq in seqs), np.int32, len(seqs))
        query_starts = np.fromiter(accumulate(lengths, initial=0), np.int32, len(seqs) + 1)
        counts = np.diff(query_starts)
        offsets = np.arange(len(tokens), dtype=np.int32) - np.repeat(query_starts[:-1], counts)
        return StepInputs(
            token_ids=np.array(tokens, np.int32),
            positions=np.repeat(starts, counts) + offsets,
            query_starts=query_starts,
            context_lens=starts + counts,
            block_tables=_block_tables(seqs),
            logit_rows=np.array(logit_rows, np.int32),
            lora_slots=self._slots(seqs),
            hidden_rows=np.array(hidden_rows, np.int32),
            sequences=tuple(seq.seq_id for seq in seqs),
        )

    def _slots(self, seqs: Seq[SeqStep]) -> np.ndarray | None:
        slots = [self._lora_slots.get(seq.seq_id, -1) for seq in seqs]
        return np.array(slots, np.int32) if max(slots) >= 0 else None

    def _score_prompts(
        self, logits: torch.Tensor, plan: "_RowPlan"
    ) -> dict[int, list[TokenLogprobs]]:
        """Return the prompts whose last token was computed in this step, scored whole."""
        done = {}
        for seq, first_row, count in plan.prompt_rows:
            scores = self._prompts[seq.seq_id]
            scores.add(logits[first_row : first_row + count], seq.start)
            if scores.complete:
                done[seq.seq_id] = scores.scored
                del self._prompts[seq.seq_id]
        return done

    def _embed_prompts(self, hidden: torch.Tensor | None, plan: "_RowPlan") -> dict[int, bytes]:
        """Return the embeddings of the prompts whose last token was computed in this step."""
        done = {}
        for seq, first_row, count in plan.embedded_rows:
            assert hidden is not None, "hidden states were asked for"
            mean = self._means[seq.seq_id]
            mean.add(hidden[first_row : first_row + count])
            if mean.complete:
                done[seq.seq_id] = mean.to_bytes()
                del self._means[seq.seq_id]
        return done


class _RowPlan:
    """Which tokens of the flattened step need logits or hidden states, and for whom."""

    def __init__(
        self,
        seqs: Seq[SeqStep],
        scored: "dict[int, _PromptScores]",
        embedded: "dict[int, _PromptMean]",
    ) -> None:
        self.rows: list[int] = []
        self.hidden_rows: list[int] = []
        self.embedded_rows: list[tuple[SeqStep, int, int]] = []  # sequence, first row, count
        self.sample_rows: list[SampleRow] = []
        self.prompt_rows: list[tuple[SeqStep, int, int]] = []  # sequence, first row, count
        end = 0
        for seq in seqs:
            start, end = end, end + seq.num_tokens
            if seq.seq_id in embedded:
                self.embedded_rows.append((seq, len(self.hidden_rows), seq.num_tokens))
                self.hidden_rows += range(start, end)
            if seq.seq_id in scored:
                self.prompt_rows.append((seq, len(self.rows), seq.num_tokens))
                self.rows += range(start, end)
                if seq.sample:
                    self.sample_rows.append(SampleRow(seq.seq_id, len(self.rows) - 1, []))
            elif seq.sample:
                drafts = seq.tokens[len(seq.tokens) - seq.num_drafts :]
                self.sample_rows.append(SampleRow(seq.seq_id, len(self.rows), drafts))
                self.rows += range(end - 1 - seq.num_drafts, end)


class _PromptScores:
    """A prompt's log probabilities, gathered chunk by chunk: token i is scored by row i - 1."""

    def __init__(self, prompt: list[int], num_top: int) -> None:
        self.prompt = prompt
        self.num_top = num_top
        self.scored: list[TokenLogprobs] = []

    def add(self, logits: torch.Tensor, start: int) -> None:
        targets = self.prompt[start + 1 : start + 1 + len(logits)]
        self.scored += prompt_logprobs(logits[: len(targets)], targets, self.num_top)

    @property
    def complete(self) -> bool:
        return len(self.scored) == len(self.prompt) - 1


class _PromptMean:
    """The mean of a prompt's hidden states, gathered chunk by chunk."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._num_added = 0
        self._sum: torch.Tensor | float = 0.0

    def add(self, hidden: torch.Tensor) -> None:
        self._sum = self._sum + hidden.sum(0, dtype=torch.float64)
        self._num_added += len(hidden)

    @property
    def complete(self) -> bool:
        return self._num_added == self._num_tokens

    def to_bytes(self) -> bytes:
        assert isinstance(self._sum, torch.Tensor), "a prompt has a token"
        mean = (self._sum / self._num_tokens).cpu().numpy()
        return mean.astype("<f4").tobytes()


def _block_tables(seqs: Seq[SeqStep]) -> np.ndarray:
    width = max(len(seq.blocks) for seq in seqs)
    tables = np.zeros((len(seqs), width), np.int32)
    for row, seq in zip(tables, seqs, strict=True):
        row[: len(seq.blocks)] = seq.blocks
    return tables
