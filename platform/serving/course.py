"""An answer's course: over one worker, or over several, one leg after the other."""

import asyncio
from dataclasses import dataclass, field, replace

from stafette.platform.frontend.generator import Hints
from stafette.platform.serving.answering import AnswerText
from stafette.platform.serving.attempt import Attempt
from stafette.router.router import Placement
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams


@dataclass(slots=True, eq=False)
class Course:
    """One of the answers to a client's request."""

    request: Request
    index: int
    hints: Hints
    text: AnswerText
    _number: int = 0  # of the latest leg

    @property
    def begun(self) -> bool:
        return bool(self.text.token_ids)

    def next_name(self) -> str:
        """Return the name under which workers and router know the next leg."""
        self._number += 1
        return f"{self.request.request_id}-{self.index}-{self._number}"

    def request_from_here(self, name: str) -> Request:
        """Return what a worker is asked for: one answer, from where it stands."""
        params, token_ids = self.request.params, list(self.text.token_ids)
        return replace(
            self.request,
            request_id=name,
            params=self._params(params, resumed=bool(token_ids)),
            output_token_ids=token_ids,
            detokenize=False,
        )

    def _params(self, params: SamplingParams, resumed: bool) -> SamplingParams:
        """Return those of one answer; they are checked again only where they differ."""
        seed = params.seed + self.index if params.seed is not None else None
        scored = None if resumed else params.prompt_logprobs  # told by an earlier leg
        as_it_is = (params.n, params.seed, params.stop, params.prompt_logprobs)
        if as_it_is == (1, seed, (), scored):
            return params
        return replace(params, n=1, seed=seed, stop=(), prompt_logprobs=scored)


@dataclass(slots=True, eq=False)
class Leg:
    """An answer's stay on the workers of one placement."""

    course: Course
    attempt: Attempt
    before: "Leg | None" = None  # that was cut for this one
    onward: Placement | None = None  # where it goes on, when it was cut for that
    onward_began: asyncio.Event = field(default_factory=asyncio.Event)  # or came to nothing

    @property
    def name(self) -> str:
        return self.attempt.request.request_id

    @property
    def decode(self) -> str:
        return self.attempt.placement.decode

    @property
    def workers(self) -> tuple[str, ...]:
        """Return whom it needs to go on."""
        prefill = self.attempt.placement.prefill
        return (self.decode,) if prefill is None or self.course.begun else (self.decode, prefill)

    def arrived(self) -> None:
        """It has begun, or ended: either way its move is over."""
        if self.before is not None:
            self.before.onward_began.set()
            self.before = None
