"""Many decoding steps at once, where nothing can happen between them.

While the same sequences decode and nobody else can be admitted, every step to come is known: when
it ends, which tokens it brings, who needs a block and whose block is full. A glide books such steps
in one go, up to the moment at which somebody looks or something comes. Books, blocks, events and
times are exactly those of one step after the other.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stafette.workers.batch import Batch, Sampled, SeqStep, StepOutput
from stafette.workers.mocker.answers import MockDevice
from stafette.workers.scheduler import Scheduler
from stafette.workers.sequence import Sequence

_LEAST_STEPS = 3  # fewer are made one by one
_MOST_STEPS = 1_024

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that brought one token each to the same requests."""

    seq_ids: list[int]
    token_ids: list[list[int]]  # by sequence, in the order of the steps
    ends_s: Floats  # of the steps
    request_ids: list[str] = field(default_factory=list)  # of the sequences


@dataclass(slots=True)
class Flight:
    """A batch that runs, or is to run behind the one that does."""

    batch: Batch
    output: StepOutput
    ends_at: float


@dataclass(slots=True, eq=False)
class _Stand:
    """A sequence as it was when the glide began."""

    seq: Sequence
    length: int  # known tokens


_Work = defaultdict[int, list[_Stand]]  # whose blocks, by the number of a step


def decodes(batch: Batch, seqs: list[Sequence]) -> bool:
    """Whether a batch is one token of each of these, and of nobody else."""
    if len(batch.seqs) != len(seqs):
        return False
    pairs = zip(batch.seqs, seqs, strict=True)
    return all(s.seq_id == q.seq_id and s.sample and s.num_tokens == 1 for s, q in pairs)


def steps_ahead(
    seqs: list[Sequence], device: MockDevice, block_size: int, ahead: int, blocks_left: int
) -> int:
    """Return over how many steps nothing can happen; 0 when one by one is as good.

    `ahead` is how many steps are on their way.
    """
    count = min(_MOST_STEPS, *(seq.max_length - len(seq.token_ids) - 1 for seq in seqs))
    if count >= _LEAST_STEPS:
        count = min(count, *(device.steps_to_end(seq.seq_id, len(seq.token_ids)) for seq in seqs))
    while count >= _LEAST_STEPS:
        if _num_wanted(seqs, ahead + count - 1, block_size) <= blocks_left:
            break
        count //= 2
    return count if count >= _LEAST_STEPS else 0


def _num_wanted(seqs: list[Sequence], more_tokens: int, block_size: int) -> int:
    """Return how many blocks the sequences lack to be so many tokens longer."""
    return sum(
        max(0, -(-(len(seq.token_ids) + more_tokens) // block_size) - len(seq.block_table))
        for seq in seqs
    )


class Glide:
    """Begins where a batch would be looked for; with async scheduling, behind the one on its way.

    Step 1 is the first to end. Behind the end of step i comes launch i, which plans the step that
    begins when those on their way have ended; launch 0 is that of the beginning.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        device: MockDevice,
        seqs: list[Sequence],
        num_steps: int,
        now: float,
        flight: Flight | None,  # what is on its way
    ) -> None:
        self.num_steps = num_steps
        self.num_settled = 0
        self._scheduler = scheduler
        self._device = device
        self._stands = [_Stand(seq, len(seq.token_ids)) for seq in seqs]
        self._now = now
        self._flight = flight
        self._ahead = int(flight is not None)
        self._first = scheduler.num_settled + 1  # the number of the batch of step 1
        self._num_launched = -1  # the latest launch for which blocks were taken
        self._grew_at = -1  # and the latest that took some
        self._seconds, self._ends = self._times()
        self._do_block_work(0, 0, _nothing)

    def _times(self) -> tuple[Floats, Floats]:
        """Return how long each step takes and when it ends; the one after the last too."""
        known, count = sum(stand.length for stand in self._stands), len(self._stands)
        kv_tokens = known + count * np.arange(self.num_steps + 1)
        seconds = self._device.decode_seconds(count, kv_tokens)
        if self._flight is None:
            ends = np.add.accumulate(np.concatenate(([self._now], seconds)))[1:]
        else:
            seconds[0] = self._flight.output.seconds
            ends = np.add.accumulate(np.concatenate(([self._flight.ends_at], seconds[1:])))
        return seconds, ends

    @property
    def ends_at(self) -> float:
        return float(self._ends[self.num_steps - 1])

    @property
    def blocks_wanted(self) -> int:
        """Return how many blocks are still to be taken."""
        more = self._ahead + self.num_steps - self.num_settled - 1
        seqs = [stand.seq for stand in self._stands]
        return _num_wanted(seqs, more, self._scheduler.tables.pool.block_size)

    def num_over(self, now: float) -> int:
        """Return how many steps have ended before that time: those that end then are not over."""
        return min(self.num_steps, int(np.searchsorted(self._ends, now, side="left")))

    def settle(self, count: int, tell: Callable[[float], None]) -> tuple[Stretch, Floats]:
        """Book the steps up to the `count`-th; call `tell` where events are told, with the time.

        Return what they brought, by sequence, and how long each took.
        """
        before, self.num_settled = self.num_settled, count
        tokens = self._lengthen(before, count)
        self._do_block_work(before, count, tell)
        self._scheduler.book_ahead(count - before, num_settled=count - before)
        ids = [stand.seq.seq_id for stand in self._stands]
        return Stretch(ids, tokens, self._ends[before:count]), self._seconds[before:count]

    def flights(self, depth: int) -> list[Flight]:
        """Return what is on its way behind the steps that are booked: so many batches."""
        for stand in self._stands:
            more = depth - self._ahead
            stand.seq.num_computed += more
            stand.seq.num_in_flight += more
            stand.seq.num_unsettled += more
        self._scheduler.book_ahead(depth - self._ahead, num_settled=0)
        return [self._flight_of(self.num_settled + number) for number in range(depth)]

    def _flight_of(self, number: int) -> Flight:
        """Return the batch of the step behind so many."""
        batch, sampled = Batch(self._first + number, []), {}
        for stand in self._stands:
            seq, start = stand.seq, stand.length - 1 + number
            batch.seqs.append(SeqStep(seq.seq_id, start, [], True, seq.block_table, True))
            sampled[seq.seq_id] = Sampled([self._device.token(seq.seq_id, start + 1)])
        output = StepOutput(batch.step, sampled, seconds=float(self._seconds[number]))
        return Flight(batch, output, float(self._ends[number]))

    def _lengthen(self, before: int, count: int) -> list[list[int]]:
        ends = [(stand.seq.seq_id, stand.length + before) for stand in self._stands]
        added = self._device.tokens(ends, count - before)
        for stand, tokens in zip(self._stands, added, strict=True):
            stand.seq.token_ids += tokens
            stand.seq.num_computed += count - before
        return added

    def _do_block_work(self, before: int, count: int, tell: Callable[[float], None]) -> None:
        """Publish full blocks and take new ones, in the order in which single steps would."""
        tables = self._scheduler.tables
        full, short = self._full_blocks(before, count), self._short_tables(count)
        told = {number + 1 for number in (*short, self._grew_at)} | full.keys()
        for number in sorted(told | short.keys()):
            for stand in full.get(number, ()):
                tables.publish(stand.seq, stand.length + number - 1)
            if before < number <= count and number in told:
                tell(float(self._ends[number - 1]))
            for stand in short.get(number, ()):  # launch follows the end of its step
                needed = tables.num_blocks(stand.length + self._ahead + number)
                if needed > len(stand.seq.block_table):
                    grown = tables.grow(stand.seq, needed)
                    assert grown, "it was made sure that there are enough"
                    self._grew_at = number

    def _full_blocks(self, before: int, count: int) -> _Work:
        """Return by step whose block is full when it ends."""
        size, found = self._scheduler.tables.pool.block_size, _Work(list)
        for stand in self._stands:
            first = before + 1 + (-stand.length - before) % size
            for number in range(first, count + 1, size):
                found[number].append(stand)
        return found

    def _short_tables(self, count: int) -> _Work:
        """Return by launch whose table may be full; that of the very last is not ours."""
        size, found = self._scheduler.tables.pool.block_size, _Work(list)
        launched, last = self._num_launched, min(count, self.num_steps - 1)
        self._num_launched = max(launched, last)
        for stand in self._stands:
            first = launched + 1 + (-stand.length - self._ahead - launched) % size
            for number in range(first, last + 1, size):
                found[number].append(stand)
        return found


def _nothing(at: float) -> None:
    pass
