"""The scheduler: who computes which tokens next, in which KV blocks, and what came of it."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol

from stafette.kvtransfer.blocks import BlockHasher, Extras
from stafette.workers.batch import Batch, NewSeq, Sampled, SeqStep, StepOutput
from stafette.workers.errors import RequestError
from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.kvcache.tables import BlockTables
from stafette.workers.lineup import Lineup
from stafette.workers.progress import Progress
from stafette.workers.request import FinishReason
from stafette.workers.scheduler_config import SchedulerConfig, check_capacity
from stafette.workers.sequence import Sequence, Status
from stafette.workers.stats import SchedulerStats

_MAX_UNSETTLED = 2  # the batch that runs, and the one behind it


class Proposer(Protocol):
    """Guesses the tokens that follow a text."""

    def propose(self, seq_id: int, tokens: Seq[int], max_drafts: int) -> list[int]: ...

    def forget(self, seq_id: int) -> None: ...


@dataclass(slots=True)
class _Plan:
    """The next batch as it fills up."""

    tokens_left: int
    steps: list[SeqStep] = field(default_factory=list)
    added: list[NewSeq] = field(default_factory=list)


class Scheduler:
    """Owns the line of waiting and the line of running sequences; used by one thread.

    A sequence's place in both is `arrival + priority * priority_step_s` and never changes. The
    first of all can take the blocks of every other, so somebody always gets on; and since places
    only move forward, everybody becomes the first.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        clock: Callable[[], float],
        proposer: Proposer | None = None,
        hasher: BlockHasher | None = None,
    ) -> None:
        check_capacity(pool.num_blocks, pool.block_size, config.max_model_len)
        self.config = config
        self._pool = pool
        self._tables = BlockTables(pool, hasher or BlockHasher("", pool.block_size))
        self._clock = clock
        self._proposer = proposer
        self._seqs: dict[int, Sequence] = {}
        self._waiting = Lineup()
        self._running = Lineup()
        self._removed: list[int] = []  # for the executor to forget
        self._num_batches = 0
        self._num_settled = 0
        self._num_preemptions = 0
        self._open = True  # to others; without continuous batching only while a batch fills up

    @property
    def num_settled(self) -> int:
        return self._num_settled

    @property
    def tables(self) -> BlockTables:
        return self._tables

    @property
    def has_work(self) -> bool:
        return bool(self._seqs)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_queued_tokens=self._num_queued_tokens(),
            num_blocks=self._pool.num_blocks,
            num_blocks_used=self._pool.num_held,
            num_blocks_cached=self._pool.num_idle,
            prefix_queries=self._pool.queries,
            prefix_hits=self._pool.hits,
            num_preemptions=self._num_preemptions,
        )

    def _num_queued_tokens(self) -> int:
        """Another thread may ask: of what it sees, every part was true a moment ago."""
        uncomputed = (seq.num_uncomputed for seq in list(self._seqs.values()))
        return sum(count for count in uncomputed if count > 1)

    def add(self, seq: Sequence) -> None:
        """Let a sequence wait for its turn. RequestError when it could never have one."""
        self._check(seq)
        assert seq.seq_id not in self._seqs, "ids are used once"
        if seq.arrival is None:
            seq.arrival = self._clock()
        seq.order = (seq.arrival + seq.priority * self.config.priority_step_s, seq.seq_id)
        longest = self.config.max_model_len
        if seq.params.max_tokens is not None:
            longest = min(longest, seq.num_prompt_tokens + seq.params.max_tokens)
        seq.max_length = longest
        self._seqs[seq.seq_id] = seq
        self._waiting.add(seq)

    def abort(self, seq_id: int) -> bool:
        """End a sequence now; False when there is none. What is on its way for it is dropped."""
        seq = self._seqs.get(seq_id)
        if seq is not None:
            self._finish(seq, "abort")
        return seq is not None

    def was_admitted(self, seq_id: int) -> bool:
        """Whether a sequence runs, or did before it was preempted."""
        seq = self._seqs[seq_id]
        return seq.status is Status.RUNNING or seq.num_preemptions > 0

    def prompt_hashes(self, token_ids: list[int], extras: Extras) -> list[bytes]:
        """Return the hashes under which the blocks of a prompt are found."""
        return self._tables.prompt_hashes(token_ids, extras)

    def next_batch(self) -> Batch | None:
        """Decode what runs, go on with its prompts, admit others with what is left of the budget.

        May be called while one batch is unsettled. None: nothing can run until it is settled.
        """
        assert self._num_batches - self._num_settled < _MAX_UNSETTLED, "settle a batch first"
        plan = _Plan(self.config.max_num_batched_tokens)
        self._open = self.config.continuous_batching or self._open or not self._running
        self._make_way()
        self._decode(plan)
        self._prefill(plan)
        self._admit(plan)
        self._open = self._open and plan.tokens_left == 0
        if not plan.steps:
            return None
        self._num_batches += 1
        removed, self._removed = self._removed, []
        return Batch(self._num_batches, plan.steps, plan.added, removed)

    def settle(self, batch: Batch, output: StepOutput) -> list[Progress]:
        """Book what the oldest unsettled batch brought; return it by sequence."""
        self._num_settled += 1
        assert batch.step == output.step == self._num_settled, "batches are settled in order"
        done = []
        for step in batch.seqs:
            seq = self._seqs.get(step.seq_id)
            if seq is not None:  # else it ended while this step was on its way
                progress = self._settle_step(seq, step, output)
                if progress is not None:
                    done.append(progress)
        return done

    def steady(self) -> list[Sequence]:
        """Return who runs, when the batches to come can only be a token of each; else nobody."""
        running, config = self._running, self.config
        if not config.continuous_batching or self._proposer is not None:
            return []
        if self._waiting and (
            len(running) < config.max_num_seqs or running.behind(self._waiting.first)
        ):
            return []
        seqs = list(running)
        alone = len(seqs) < config.max_num_batched_tokens
        plain = all(seq.num_uncomputed == 1 and not seq.params.stop_token_ids for seq in seqs)
        return seqs if alone and plain else []

    def book_ahead(self, num_batches: int, num_settled: int) -> None:
        """Count batches of `steady` sequences that were made, and settled, by somebody else."""
        self._num_batches += num_batches
        self._num_settled += num_settled

    # -- the rules of a batch

    def _make_way(self) -> None:
        """Preempt for the first of those waiting, where it comes before some that run."""
        if not (self._waiting and self._running and self._open):
            return
        seq = self._waiting.first
        later = self._running.behind(seq)
        if not later or seq.num_unsettled:
            return
        spare = 2 * (len(self._running) - len(later))  # for this step and the next
        most = self._pool.num_available + sum(len(other.block_table) for other in later)
        if self._num_blocks_to_begin(seq) + spare > most:
            return
        while later and not self._fits(seq, spare):
            self._preempt(later.pop())

    def _fits(self, seq: Sequence, spare: int) -> bool:
        if len(self._running) >= self.config.max_num_seqs:
            return False
        cached = self._tables.cached(seq)
        needed = self._pool.num_needed(cached, self._num_blocks_to_begin(seq))
        return needed + spare <= self._pool.num_available

    def _decode(self, plan: _Plan) -> None:
        drafts_left = plan.tokens_left - len(self._running)
        for seq in self._running:
            if plan.tokens_left == 0:
                break
            if seq.num_uncomputed != 1 or seq.length >= seq.max_length:
                continue  # a prompt; or the token on its way is the last
            if seq.status is not Status.RUNNING or not self._has_room(seq):
                continue
            drafts = self._drafts(seq, drafts_left) if self._proposer is not None else []
            drafts_left -= len(drafts)
            self._plan_step(plan, seq, 1, drafts)

    def _prefill(self, plan: _Plan) -> None:
        for seq in self._running:
            if seq.num_uncomputed > 1:
                self._admit(plan, before=seq)
                if plan.tokens_left == 0:
                    break
                self._plan_step(plan, seq, min(seq.num_uncomputed, plan.tokens_left))

    def _admit(self, plan: _Plan, before: Sequence | None = None) -> None:
        """Admit the first of the line while it can be: nobody overtakes one that lacks blocks."""
        while plan.tokens_left and self._waiting and self._open:
            seq = self._waiting.first
            if before is not None and seq.order > before.order:
                return
            if not self._try_begin(seq, plan.tokens_left):
                return
            self._waiting.remove(seq)
            self._running.add(seq)
            seq.status = Status.RUNNING
            plan.added.append(seq.introduction())
            self._plan_step(plan, seq, min(seq.num_uncomputed, plan.tokens_left))

    def _try_begin(self, seq: Sequence, tokens_left: int) -> bool:
        """Give a waiting sequence blocks for all of its tokens, if it may run now."""
        if len(self._running) >= self.config.max_num_seqs or seq.num_unsettled:
            return False
        cached = self._tables.cached(seq)
        if self.config.continuous_batching and self._tables.shares_work(seq, len(cached)):
            return False
        to_compute = len(seq.token_ids) - len(cached) * self._pool.block_size
        # One that has grown beyond any budget before it was preempted is cut all the same.
        whole = to_compute <= self.config.max_num_batched_tokens
        if whole and to_compute > tokens_left and not self.config.enable_chunked_prefill:
            return False
        # One block to spare for each that goes before it: else it is the first to be preempted.
        spare = len(self._running) - len(self._running.behind(seq))
        return self._tables.take(seq, cached, self._num_blocks_to_begin(seq), spare)

    def _num_blocks_to_begin(self, seq: Sequence) -> int:
        whole = self.config.preallocate_kv
        return self._tables.num_blocks(self.config.max_model_len if whole else seq.length)

    def _has_room(self, seq: Sequence) -> bool:
        """Give a running sequence the block for its next token, preempting those behind it."""
        needed = self._tables.num_blocks(seq.length)
        if len(seq.block_table) >= needed:
            return True
        while not self._tables.grow(seq, needed):
            victim = self._running.last
            if victim is seq:
                return False  # it waits, with its blocks, for those before it
            self._preempt(victim)
        return True

    def _drafts(self, seq: Sequence, drafts_left: int) -> list[int]:
        assert self._proposer is not None
        assert not seq.num_in_flight, "drafts follow a token that is known"
        most = min(
            self.config.speculative_tokens, drafts_left, seq.max_length - len(seq.token_ids) - 1
        )
        if most <= 0:
            return []
        drafts = self._proposer.propose(seq.seq_id, seq.token_ids, most)[:most]
        needed = self._tables.num_blocks(seq.length + len(drafts))
        if needed > len(seq.block_table) and not self._tables.grow(seq, needed):
            return []
        return drafts

    def _plan_step(
        self, plan: _Plan, seq: Sequence, num_tokens: int, drafts: Seq[int] = ()
    ) -> None:
        start = seq.num_computed
        end = start + num_tokens
        sample = end == seq.length
        tokens = seq.token_ids[start:end]
        if drafts:
            tokens += drafts
        table, needed = seq.block_table, self._tables.num_blocks(end + len(drafts))
        blocks = table if len(table) == needed else table[:needed]
        from_last = seq.num_in_flight > 0
        step = SeqStep(seq.seq_id, start, tokens, from_last, blocks, sample, len(drafts))
        plan.steps.append(step)
        plan.tokens_left -= num_tokens + len(drafts)
        seq.num_computed = end + len(drafts)
        seq.num_unsettled += 1
        seq.num_in_flight += sample

    def _preempt(self, seq: Sequence) -> None:
        """Take a running sequence's blocks; what they held is found in the cache or recomputed."""
        self._running.remove(seq)
        self._tables.release(seq)
        self._removed.append(seq.seq_id)
        seq.status = Status.WAITING
        seq.num_preemptions += 1
        self._num_preemptions += 1
        self._waiting.add(seq)

    # -- the rules of an answer

    def _settle_step(self, seq: Sequence, step: SeqStep, output: StepOutput) -> Progress | None:
        seq.num_unsettled -= 1
        progress = Progress(seq.seq_id, [], num_cached_tokens=seq.num_cached_tokens)
        progress.embedding = output.embeddings.get(seq.seq_id)
        scores = output.prompt_logprobs.get(seq.seq_id)
        if scores is not None and not seq.prompt_scored:
            progress.prompt_logprobs = scores
            seq.prompt_scored = True
        error = output.failed.get(seq.seq_id)
        if error is not None:
            progress.error = error
            progress.finish_reason = "error"
        else:
            self._book(seq, step, output.sampled.get(seq.seq_id), progress)
        if progress.finish_reason is not None:
            self._finish(seq, progress.finish_reason)
            return progress
        return progress if step.sample or progress.prompt_logprobs is not None else None

    def _book(
        self, seq: Sequence, step: SeqStep, sampled: Sampled | None, progress: Progress
    ) -> None:
        """Add the new tokens to the sequence; publish what this step has completed."""
        num_valid = step.start + step.num_tokens
        if step.sample:
            assert sampled is not None, "a step that samples brings a token or an error"
            seq.num_in_flight -= 1
            num_valid += len(sampled.token_ids) - 1 - step.num_drafts
            progress.extend(seq, sampled, self.config.eos_token_ids)
        if seq.status is Status.RUNNING:
            if step.num_drafts:
                seq.num_computed = num_valid
            self._tables.publish(seq, min(num_valid, len(seq.token_ids)))

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        if seq.status is Status.RUNNING:
            self._running.remove(seq)
            self._tables.release(seq)
            self._removed.append(seq.seq_id)
        else:
            self._waiting.remove(seq)
        seq.status = Status.FINISHED
        seq.finish_reason = reason
        del self._seqs[seq.seq_id]
        if self._proposer is not None:
            self._proposer.forget(seq.seq_id)

    def _check(self, seq: Sequence) -> None:
        prompt = seq.num_prompt_tokens
        longest, budget = self.config.max_model_len, self.config.max_num_batched_tokens
        if prompt < 1:
            raise RequestError("prompt", seq.token_ids, "must hold at least one token")
        if prompt >= longest:
            remedy = f"must be shorter than max_model_len = {longest}; shorten it"
            raise RequestError("prompt", f"{prompt} tokens", remedy)
        if prompt > budget and not self.config.enable_chunked_prefill:
            remedy = f"must fit into max_num_batched_tokens = {budget}, or be cut: "
            raise RequestError("prompt", f"{prompt} tokens", remedy + "set enable_chunked_prefill")
