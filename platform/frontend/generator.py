"""What the API needs of whatever makes tokens: an engine in this process, workers, or a fake."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stafette.workers.request import OutputDelta, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What no engine needs to know, but who chooses the worker does."""

    tenant: str = ""  # the name of the API key
    session: str = ""  # requests of one session like to go to one worker
    deadline_s: float | None = None  # until when the answer must have ended, from now


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the generator is: counts since its start, states as of now."""

    alive: bool = True  # False: only a restart helps
    ready: bool = True  # takes requests
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # 0..1
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0
    num_preemptions: int = 0
    pulled_tokens: int = 0  # whose KV came from another worker
    loras: tuple[str, ...] = ()  # adapters that requests may name


class Generator(Protocol):
    """Errors: RequestError or an ApiError (TooMany when all is full, Unavailable) before the first
    delta; after it, a delta with finish_reason `error`, or EngineDead.
    """

    def stream(self, request: Request, hints: Hints) -> AsyncGenerator[list[OutputDelta], None]:
        """Yield all that has come since the last look; closing it early aborts the request."""
        ...

    def placement(self, request_id: str) -> Mapping[str, Any] | None:
        """Return why a request went where it went, as plain values; None: there was no choice."""
        ...

    def status(self) -> Status:
        """Return how things are, at once."""
        ...

    def workers(self) -> list[dict[str, Any]]:
        """Return what there is to know of each worker, as plain values; empty: there are none."""
        ...

    def decisions(self, query: str) -> Mapping[str, Any]:
        """Return why recent requests went where they went; `query` as in a URL chooses which."""
        ...
