"""Which request the code that runs is about: for log lines, in whatever process it is."""

from contextvars import ContextVar

REQUEST: ContextVar[str] = ContextVar("stafette_request", default="")
