"""Which request the code that runs is about: for log lines, in whatever process it is."""

from contextvars import ContextVar

REQUEST: ContextVar[str] = ContextVar("stafette_request", default="")
TRACE: ContextVar[str] = ContextVar("stafette_trace", default="")  # its id; empty: not traced
