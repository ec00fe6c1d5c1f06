"""How long requests wait, are computed, and are answered: an engine's own share of their time."""

import time
from collections.abc import Callable, Iterable

from stafette.kvtransfer.histogram import Histogram

# Seconds; vLLM's bounds, so that its dashboards show ours.
BOUNDS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


class RequestTimes:
    """Follows each sequence from its arrival. Written by the engine's thread; others may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.queued = Histogram(BOUNDS_S)  # until a step takes it in
        self.prefill = Histogram(BOUNDS_S)  # from then to its first token
        self.decode = Histogram(BOUNDS_S)  # from then to its last
        self._clock = clock
        self._waiting: dict[int, float] = {}  # since when, by sequence
        self._computed: dict[int, float] = {}  # its prompt is
        self._answered: dict[int, float] = {}

    def arrived(self, seq_id: int) -> None:
        self._waiting[seq_id] = self._clock()

    def admitted(self, seq_ids: Iterable[int]) -> None:
        """A step takes these in; one that was set back comes a second time, and does not count."""
        now = self._clock()
        for seq_id in seq_ids:
            since = self._waiting.pop(seq_id, None)
            if since is not None:
                self.queued.observe(now - since)
                self._computed[seq_id] = now

    def answered(self, seq_id: int) -> None:
        """A token has come: for most calls, not the first."""
        since = self._computed.pop(seq_id, None)
        if since is not None:
            now = self._clock()
            self.prefill.observe(now - since)
            self._answered[seq_id] = now

    def finished(self, seq_id: int) -> None:
        since = self._answered.pop(seq_id, None)
        if since is not None:
            self.decode.observe(self._clock() - since)

    def forget(self, seq_id: int) -> None:
        """It was aborted."""
        for each in (self._waiting, self._computed, self._answered):
            each.pop(seq_id, None)
