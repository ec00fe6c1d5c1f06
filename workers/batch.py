"""What passes between the scheduler and the executor: plain values, fit for msgpack."""

from dataclasses import dataclass, field

from stafette.workers.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class NewSeq:
    """A sequence that the executor has not seen, or is to see afresh."""

    seq_id: int
    prompt_token_ids: list[int]
    output_token_ids: list[int]  # sampled before, elsewhere or ahead of a preemption
    params: SamplingParams
    lora_slot: int = -1


@dataclass(frozen=True, slots=True)
class SeqStep:
    """One sequence's share of a step: its tokens at positions start, start + 1, …"""

    seq_id: int
    start: int
    tokens: list[int]  # those known to the scheduler
    from_last: bool  # one more follows: the token sampled in the step before, still on its way
    blocks: list[int]  # the sequence's block table, up to its last token here
    sample: bool  # this step reaches the end of the sequence: choose the next token
    num_drafts: int = 0  # how many of `tokens`, the last ones, are guesses to verify

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) + self.from_last


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. The executor first forgets `removed`, then learns `added`, then runs `seqs`."""

    step: int
    seqs: list[SeqStep]
    added: list[NewSeq] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(seq.num_tokens for seq in self.seqs)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One position: the chosen token's log probability and rank, and the most likely others."""

    token_id: int
    logprob: float
    rank: int  # 1 is the most likely
    top: dict[int, float]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one sequence got from a step: one token, or more where drafts were right."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's answer. `failed` sequences get nothing but their error; the others are unharmed."""

    step: int
    sampled: dict[int, Sampled]
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    embeddings: dict[int, bytes] = field(default_factory=dict)  # float32, little-endian
    failed: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
