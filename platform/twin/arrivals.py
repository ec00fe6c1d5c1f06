"""A request of a workload, as it comes; and who follows it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from stafette.platform.twin.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """`follow` is asked when it has been answered: sessions go on, agents call again."""

    at_s: float
    make_prompt: Callable[[], Prompt]  # when it comes: prompts take room
    output_tokens: int
    session: str = ""
    follow: "Follow | None" = None


class Follow(Protocol):
    """What comes of an answer."""

    def __call__(self, at_s: float, prompt: Prompt, answer: list[int]) -> list[Arrival]:
        """Return the requests that come because one was answered at this time."""


class Workload(Protocol):
    """Requests in the order of their times, the same on every pass."""

    @property
    def duration_s(self) -> float:
        """Until when there is a load; what is under way then is served to its end."""

    def arrivals(self) -> Iterator[Arrival]: ...
