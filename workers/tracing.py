"""Spans of a request, as frontends and workers see them; how they are told is the platform's.

Nothing here costs anything where traces are off: there is no tracer, and no request has a parent.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Protocol

from stafette.workers.request import OutputDelta

Value = str | bool | int | float | list[str]
Attributes = Mapping[str, Value]
NOTHING: Attributes = {}


class Span(Protocol):
    """A part of a request's way. Any thread may call it."""

    @property
    def traceparent(self) -> str:
        """Return what the parts of this part are begun with, as W3C writes it."""
        ...

    def note(self, attributes: Attributes) -> None: ...

    def event(self, name: str, attributes: Attributes = NOTHING) -> None:
        """Something has happened now."""
        ...

    def part(
        self, name: str, attributes: Attributes = NOTHING, began: float | None = None
    ) -> "Span":
        """Begin a part of this one, now or at a time of time.monotonic."""
        ...

    def end(self, error: BaseException | None = None) -> None: ...


class WorkerTracer(Protocol):
    def begin(self, name: str, request_id: str, traceparent: str) -> Span | None:
        """Begin a worker's part of a request; None when this one is not traced."""
        ...


CURRENT: ContextVar[Span | None] = ContextVar("stafette_span", default=None)  # of a frontend


def happened(name: str, attributes: Attributes = NOTHING) -> None:
    """Note an event of the request that the code which runs is about, if it is traced."""
    span = CURRENT.get()
    if span is not None:
        span.event(name, attributes)


@contextmanager
def part(name: str) -> Iterator[Span | None]:
    """Be a part of that request meanwhile; None when it is not traced."""
    span = CURRENT.get()
    if span is None:
        yield None
        return
    with ending(span.part(name)) as own:
        yield own


@contextmanager
def ending(span: Span) -> Iterator[Span]:
    """End a span with what is inside, however that ends."""
    try:
        yield span
    except BaseException as error:
        span.end(error)
        raise
    span.end()


async def noted(
    answer: AsyncGenerator[OutputDelta, None], span: Span
) -> AsyncGenerator[OutputDelta, None]:
    """Yield an answer; note on a span when it begins, and how long it becomes."""
    num_tokens = 0
    try:
        async with aclosing(answer) as deltas:
            async for delta in deltas:
                if not num_tokens and delta.token_ids:
                    span.event("first token")
                    span.note({"stafette.cached_tokens": delta.num_cached_tokens})
                num_tokens += len(delta.token_ids)
                yield delta
    finally:
        span.note({"stafette.tokens": num_tokens})
