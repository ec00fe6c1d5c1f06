"""An answer's course over the fleet: one leg after the other, as with a real dispatcher."""

from dataclasses import dataclass, field, replace

from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.prompts import Prompt
from stafette.router.router import Placement
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams


@dataclass(slots=True, eq=False)
class Course:
    """One request, from its arrival to the end of its answer."""

    name: str
    arrival: Arrival
    prompt: Prompt
    at_s: float
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)  # of the answer so far
    first_s: float = 0.0  # when its first token came
    last_s: float = 0.0  # and its latest
    placed: bool = False
    placed_s: float = 0.0  # when it was first sent to a worker
    wait_until: float = 0.0  # for a worker
    cached_tokens: int = 0  # of the prompt, that nobody had to compute
    losses: int = 0  # legs that came to nothing
    legs: int = 0

    @property
    def begun(self) -> bool:
        return bool(self.tokens)

    def next_name(self) -> str:
        """Return the name under which workers and router know the next leg."""
        self.legs += 1
        return f"{self.name}-{self.legs}"

    def request_from_here(self, name: str) -> Request:
        return Request(
            request_id=name,
            prompt_token_ids=self.prompt.token_ids,
            params=self.params,
            output_token_ids=list(self.tokens),
            detokenize=False,
        )


@dataclass(slots=True, eq=False)
class Leg:
    """A course's stay on the workers of one placement."""

    course: Course
    placement: Placement
    began_s: float
    waits_for_first: bool = True
    computed_cached: int = 0  # tokens that the prefill worker found
    before: "Leg | None" = None  # that was cut for this one
    move: "Move | None" = None  # that is to take it elsewhere

    @property
    def name(self) -> str:
        return self.placement.request_id

    @property
    def decode(self) -> str:
        return self.placement.decode

    @property
    def workers(self) -> tuple[str, ...]:
        """Return whom it needs to go on."""
        prefill = self.placement.prefill
        if prefill is None or not self.waits_for_first:
            return (self.decode,)
        return (self.decode, prefill)


@dataclass(slots=True, eq=False)
class Move:
    """A leg's way off a worker that drains."""

    leg: Leg
    turn: str  # the worker whose turns it takes
    has_turn: bool = False
    onward: Placement | None = None  # where it is being made ready
    cut: bool = False
    ended: bool = False


def for_one_token(request: Request) -> Request:
    """A prompt is computed when its first token is there."""
    params = replace(
        request.params, max_tokens=len(request.output_token_ids) + 1, min_tokens=0, ignore_eos=True
    )
    return replace(request, params=params)
