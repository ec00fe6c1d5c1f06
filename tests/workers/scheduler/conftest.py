"""A device that remembers what was written where, and a harness that checks every step's books."""

from collections import Counter, deque
from collections.abc import Iterator

import pytest

from stafette.kvtransfer.blocks import Extras
from stafette.kvtransfer.event_log import CachedBlocks
from stafette.workers.batch import Batch, Sampled, SeqStep, StepOutput, TokenLogprobs
from stafette.workers.config import EngineConfig
from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.progress import Progress
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.scheduler import Scheduler
from stafette.workers.scheduler_config import SchedulerConfig
from stafette.workers.sequence import Sequence

VOCAB = 40
EOS = 7


def mix(digest: int, token: int) -> int:
    """Return the digest of a context that is one token longer."""
    return (digest * 6364136223846793005 + token * 2 + 1442695040888963407) % 2**64


def next_token(digest: int) -> int:
    return (digest >> 33) % VOCAB


class FakeDevice:
    """Its next token is a function of the whole context; its KV is that context's digest."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.kv: dict[tuple[int, int], int] = {}
        self.roots: dict[int, int] = {}  # what a sequence's KV depends on beside its tokens
        self.to_fail: set[int] = set()  # places in the next batch
        self.failed: set[int] = set()
        self._broken: set[int] = set()
        self.contexts: dict[int, tuple[list[int], list[int]]] = {}  # tokens, digests

    def execute(self, batch: Batch) -> StepOutput:
        for seq_id in batch.removed:
            del self.contexts[seq_id]
        for new in batch.added:
            assert new.seq_id not in self.contexts, "forgotten before it is introduced again"
            self.contexts[new.seq_id] = ([], [])
            self._extend(new.seq_id, new.prompt_token_ids + new.output_token_ids)
        output = StepOutput(batch.step, {})
        assert len({step.seq_id for step in batch.seqs}) == len(batch.seqs)
        for place, step in enumerate(batch.seqs):
            if place in self.to_fail or step.seq_id in self._broken:
                self._broken.add(step.seq_id)  # as is the one that is on its way behind it
                output.failed[step.seq_id] = "made to fail"
            else:
                self._run(step, output)
        self.to_fail.clear()
        return output

    def _run(self, step: SeqStep, output: StepOutput) -> None:
        tokens, digests = self.contexts[step.seq_id]
        known = step.tokens[: len(step.tokens) - step.num_drafts]
        if step.from_last:
            assert not step.tokens
            assert step.start == len(tokens) - 1
            known = tokens[-1:]
        end = step.start + len(known)
        assert known, "a step computes something"
        assert known == tokens[step.start : end]
        assert step.sample == (end == len(tokens))
        assert len(step.blocks) == -(-(step.start + step.num_tokens) // self.block_size)
        for position in range(step.start):
            assert self.kv[self._slot(step, position)] == digests[position], "KV of another context"
        for position in range(step.start, end):
            self.kv[self._slot(step, position)] = digests[position]
        if step.sample:
            sampled = self._sample(step, end)
            self._extend(step.seq_id, sampled)
            scores = [TokenLogprobs(token, -1.0, 1, {}) for token in sampled]
            output.sampled[step.seq_id] = Sampled(sampled, scores)

    def _sample(self, step: SeqStep, end: int) -> list[int]:
        digest = self.contexts[step.seq_id][1][-1]
        sampled = [next_token(digest)]
        right = True
        for i, draft in enumerate(step.tokens[len(step.tokens) - step.num_drafts :]):
            right = right and draft == sampled[-1]
            digest = mix(digest, draft)
            self.kv[self._slot(step, end + i)] = digest  # also where the draft is wrong
            if right:
                sampled.append(next_token(digest))
        return sampled

    def _extend(self, seq_id: int, more: list[int]) -> None:
        tokens, digests = self.contexts[seq_id]
        for token in more:
            digests.append(mix(digests[-1] if digests else self.roots[seq_id], token))
            tokens.append(token)

    def _slot(self, step: SeqStep, position: int) -> tuple[int, int]:
        return step.blocks[position // self.block_size], position % self.block_size


class FakeProposer:
    """Guesses right for a while, then wrong."""

    def __init__(self, roots: dict[int, int]) -> None:
        self.roots = roots
        self.known: set[int] = set()

    def propose(self, seq_id: int, tokens: list[int], max_drafts: int) -> list[int]:
        self.known.add(seq_id)
        digest = self.roots[seq_id]
        for token in tokens:
            digest = mix(digest, token)
        num_right = digest % 4
        drafts = []
        for i in range(max_drafts):
            token = (next_token(digest) + (i >= num_right)) % VOCAB
            drafts.append(token)
            digest = mix(digest, token)
        return drafts

    def forget(self, seq_id: int) -> None:
        self.known.discard(seq_id)


class Harness:
    """A scheduler with its pool and device, driven as the engine does; checks after every move."""

    def __init__(self, *, num_blocks: int = 64, max_model_len: int = 64, **flags) -> None:
        flags = {"block_size": 4, "async_scheduling": False} | flags
        self.config = config = EngineConfig(**flags)
        self.now = 0.0
        self.cached = CachedBlocks()
        self.pool = BlockPool(
            num_blocks, config.block_size, config.enable_prefix_caching, self.cached.apply
        )
        self.device = FakeDevice(config.block_size)
        self.proposer = FakeProposer(self.device.roots) if config.speculative_tokens else None
        self.scheduler = Scheduler(
            SchedulerConfig.of(config, max_model_len, (EOS,)),
            self.pool,
            lambda: self.now,
            self.proposer,
        )
        self.seqs: dict[int, Sequence] = {}
        self.streams: dict[int, list[int]] = {}  # what was handed out
        self.ends: dict[int, Progress] = {}
        self.in_flight: deque[Batch] = deque()
        self.pinned: list[int] = []
        self.batches: list[Batch] = []

    def add(self, prompt: list[int], *, salt: str = "", priority: int = 0, **params) -> Sequence:
        seq_id = len(self.seqs) + 1
        seq = Sequence(
            seq_id=seq_id,
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            params=SamplingParams(**params),
            priority=priority,
            extras=Extras(salt=salt),
        )
        self.device.roots[seq_id] = root_of(salt)
        self.scheduler.add(seq)
        self.seqs[seq_id] = seq
        self.streams[seq_id] = []
        self.now += 1.0
        return seq

    def abort(self, seq_id: int) -> bool:
        found = self.scheduler.abort(seq_id)
        self.check()
        return found

    def launch(self) -> None:
        """Prepare batches as far ahead as the flags allow."""
        while len(self.in_flight) < 1 + self.config.async_scheduling:
            batch = self.scheduler.next_batch()
            self.check()
            if batch is None:
                return
            assert batch.num_tokens <= self.config.max_num_batched_tokens
            self._check_order(batch)
            self.in_flight.append(batch)
            self.batches.append(batch)

    def step(self) -> list[Progress]:
        self.launch()
        if not self.in_flight:
            return []
        batch = self.in_flight.popleft()
        done = self.scheduler.settle(batch, self.device.execute(batch))
        for progress in done:
            self.streams[progress.seq_id] += progress.token_ids
            if progress.error is not None:
                self.device.failed.add(progress.seq_id)
            if progress.finish_reason is not None:
                assert progress.seq_id not in self.ends, "a sequence ends once"
                self.ends[progress.seq_id] = progress
        self.check()
        return done

    def run(self) -> None:
        """Step until all is done; nobody may need more steps than one at a time would."""
        most = 4 * sum(seq.max_length for seq in self.seqs.values()) + 8
        while self.scheduler.has_work or self.in_flight:
            most -= 1
            assert most > 0, "somebody starves"
            self.step()
        self.check_nothing_leaks()

    def check(self) -> None:
        """The books of the pool agree with the tables, the events, and each other."""
        pool = self.pool
        tables = [seq.block_table for seq in self.seqs.values()]
        expected = Counter(block for table in tables for block in table) + Counter(self.pinned)
        assert all(len(set(table)) == len(table) for table in tables)
        refs = [pool.references(block) for block in range(pool.num_blocks)]
        assert refs == [expected[block] for block in range(pool.num_blocks)]
        free = set(pool._free)
        assert len(free) == len(pool._free)
        assert not any(refs[block] or pool._hashes[block] for block in free)
        assert pool.num_held == sum(count > 0 for count in refs)
        assert len(free) + pool.num_idle + pool.num_held == pool.num_blocks
        assert self.cached.on("device") == set(pool.cached_hashes)
        for block_hash in pool.cached_hashes:
            parent = self.cached._parents[block_hash]
            assert parent is None or parent in pool._index, "a parent went before its child"

    def check_nothing_leaks(self) -> None:
        assert self.scheduler.stats().num_running == self.scheduler.stats().num_waiting == 0
        assert self.pool.num_held == len(set(self.pinned))
        assert not self.scheduler._tables._coming
        assert set(self.device.contexts) <= set(self.scheduler._removed), "never forgotten"
        assert self.proposer is None or not self.proposer.known

    def expected(self, seq: Sequence) -> tuple[list[int], str]:
        """Return what a naive generator, one sequence at a time, gives: tokens and reason."""
        return answer(
            seq.prompt_token_ids, self.device.roots[seq.seq_id], seq.params, seq.max_length
        )

    def _check_order(self, batch: Batch) -> None:
        waiting = [seq.order for seq in self.scheduler._waiting]
        for new in batch.added:
            assert all(self.seqs[new.seq_id].order < order for order in waiting), "overtaken"


def root_of(salt: str) -> int:
    return sum(salt.encode())


def answer(
    prompt: list[int], root: int, params: SamplingParams, max_length: int
) -> tuple[list[int], str]:
    digest = root
    for token in prompt:
        digest = mix(digest, token)
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
    output: list[int] = []
    while True:
        output.append(next_token(digest))
        digest = mix(digest, output[-1])
        if len(output) >= params.min_tokens and output[-1] in ends:
            return output, "stop"
        if len(prompt) + len(output) >= max_length:
            return output, "length"


@pytest.fixture
def naive():
    """The naive generator: (prompt, root, params, max_length) -> (tokens, reason)."""
    return answer


@pytest.fixture
def harness() -> Iterator[type[Harness]]:
    """The class; whatever a test makes with it has to end clean."""
    made: list[Harness] = []

    class Watched(Harness):
        def __init__(self, **flags) -> None:
            super().__init__(**flags)
            made.append(self)

    yield Watched
    for one in made:
        one.check()
        if not one.scheduler.has_work:
            one.check_nothing_leaks()
