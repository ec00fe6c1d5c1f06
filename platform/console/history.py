"""What happened in the last minutes, step by step, so that a page that opens late has a past."""

from collections import deque
from dataclasses import astuple, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """States as of `at`; counts since the moment before; milliseconds over a sliding window."""

    at: float  # seconds since the frontend's start
    ttft_p50: float | None
    ttft_p95: float | None
    itl_p50: float | None
    itl_p95: float | None
    in_flight: int  # requests that this frontend has let in
    running: int  # sequences on the workers
    waiting: int
    kv: float  # share of the fleet's blocks in use
    prompt_tokens: int
    output_tokens: int
    answered: int
    kept: int  # of them, as fast as promised
    queries: int  # prompt tokens looked up in caches
    hits: int
    moved: int  # prompt tokens whose KV went from worker to worker


_NAMES = tuple(each.name for each in fields(Moment))


class History:
    """Keeps the last `kept` moments."""

    def __init__(self, kept: int) -> None:
        self._moments: deque[tuple[int, Moment]] = deque(maxlen=kept)

    def __len__(self) -> int:
        return len(self._moments)

    @property
    def last(self) -> Moment | None:
        return self._moments[-1][1] if self._moments else None

    def add(self, version: int, moment: Moment) -> None:
        """`version` is higher than that of every moment before."""
        self._moments.append((version, moment))

    def since(self, version: int) -> dict[str, list[Any]]:
        """Return the moments behind a reader's version as columns; 0: all that are kept."""
        rows = [astuple(moment) for added, moment in self._moments if added > version]
        if not rows:
            return {}
        return {name: list(of) for name, of in zip(_NAMES, zip(*rows, strict=True), strict=True)}
