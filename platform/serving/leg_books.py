"""What the router hears of a leg, while its tokens pass on to the client."""

import time
from contextlib import suppress

from stafette.platform.serving.course import Leg
from stafette.router.errors import UnknownReservation
from stafette.router.router import KvRouter
from stafette.workers.request import OutputDelta

_TOLD_TOKENS = 8  # the router counts an answer in blocks: it need not hear of each token


class LegBooks:
    """Reads what a leg brings, as text. A worker that is gone is no concern of its: we learn it
    soon, by the stream.
    """

    __slots__ = ("_began", "_leg", "_name", "_next_told", "_resumed", "_router", "_text")

    def __init__(self, leg: Leg, router: KvRouter) -> None:
        self._leg = leg
        self._name = leg.name
        self._router = router
        self._text = leg.course.text
        self._resumed = leg.course.begun  # what is cached by now is the client's own doing
        self._began: float | None = time.monotonic()  # None: its first token is there
        self._next_told = _TOLD_TOKENS

    def read(self, delta: OutputDelta) -> OutputDelta:
        """Return what the client sees of it; the delta is ours from now on."""
        cached_tokens = delta.num_cached_tokens
        if self._resumed:
            delta.num_cached_tokens = 0
        shown = self._text.read(delta)
        if self._began is not None and delta.token_ids:
            self._first_token(cached_tokens, (time.monotonic() - self._began) * 1e3)
        count = len(self._text.token_ids)
        if count >= self._next_told:
            self._next_told = count + _TOLD_TOKENS
            with suppress(UnknownReservation):
                self._router.progress(self._name, count)
        return shown

    def _first_token(self, cached_tokens: int, ttft_ms: float) -> None:
        self._began = None
        with suppress(UnknownReservation):
            self._router.first_token(self._name, cached_tokens, ttft_ms)
        self._leg.arrived()
