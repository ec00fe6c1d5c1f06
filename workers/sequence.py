"""Sequence: one answer on its way, from its prompt to its last token."""

from dataclasses import dataclass, field
from enum import Enum, auto

from stafette.kvtransfer.blocks import NO_EXTRAS, Extras
from stafette.workers.batch import NewSeq
from stafette.workers.request import FinishReason, Request
from stafette.workers.sampling.params import SamplingParams


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """What it asks for, and where it stands; the scheduler moves it on."""

    seq_id: int
    token_ids: list[int]  # the prompt, then the output as far as it is known
    num_prompt_tokens: int
    params: SamplingParams
    priority: int = 0  # lower is served earlier
    extras: Extras = NO_EXTRAS
    lora_slot: int = -1
    arrival: float | None = None  # None: when it is added

    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    order: tuple[float, int] = (0.0, 0)  # smaller goes first; fixed when it is added
    max_length: int = 0  # prompt and output together
    num_preemptions: int = 0
    num_cached_tokens: int = 0  # of the prompt, found when it was first admitted
    prompt_scored: bool = False  # its prompt_logprobs were handed out

    num_computed: int = 0  # tokens whose KV is there once the batches on their way have run
    num_in_flight: int = 0  # tokens sampled in these batches
    num_unsettled: int = 0  # these batches
    hashes: list[bytes] = field(default_factory=list)  # of the full blocks of token_ids
    block_table: list[int] = field(default_factory=list)  # replaced, never changed: batches hold it
    num_published: int = 0  # blocks of the table that can be found by their hash
    generation: int = 0  # of the pool, when the table was begun

    @classmethod
    def of(cls, request: Request, params: SamplingParams, seq_id: int) -> "Sequence":
        """Return one of the request's answers; `params` are its own."""
        return cls(
            seq_id=seq_id,
            token_ids=request.token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            params=params,
            priority=request.priority,
            extras=Extras(lora=request.lora or "", salt=request.cache_salt or ""),
        )

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def length(self) -> int:
        """Tokens, with those in flight."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) + self.num_in_flight - self.num_computed

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    def introduction(self) -> NewSeq:
        """Return what the executor has to know before its first step, or the first afresh."""
        return NewSeq(
            seq_id=self.seq_id,
            prompt_token_ids=self.prompt_token_ids,
            output_token_ids=self.output_token_ids,
            params=self.params,
            lora_slot=self.lora_slot,
        )
