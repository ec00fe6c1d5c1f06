"""How well the promise was kept of late, as requests that were answered tell."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.observation import Finished

_KEPT_S = 60.0
_FEW = 20  # answers, from which a share means something


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one window."""

    answers: int
    ttft_ms: float  # at the promised percentile
    itl_ms: float
    late_share: float  # of requests that broke either limit

    def broken(self, slo: SloConfig) -> bool:
        """Return whether clearly more requests are late than was promised."""
        promised = max(1 - slo.ttft_percentile / 100, 1 - slo.itl_percentile / 100)
        return self.answers >= _FEW and self.late_share > 2 * promised


class Measured:
    def __init__(self, slo: SloConfig) -> None:
        self._slo = slo
        self._answers: deque[tuple[float, Finished]] = deque(maxlen=5_000)

    def see(self, at: float, finished: Sequence[Finished]) -> None:
        self._answers.extend((at, each) for each in finished)
        while self._answers and self._answers[0][0] < at - _KEPT_S:
            self._answers.popleft()

    def kept(self) -> Kept:
        answers = [each for _, each in self._answers]
        if not answers:
            return Kept(0, 0.0, 0.0, 0.0)
        slo = self._slo
        ttft = np.array([each.ttft_ms for each in answers])
        itl = np.array([each.itl_ms or 0.0 for each in answers])
        late = (ttft > slo.ttft_ms) | (itl > slo.itl_ms)
        return Kept(
            len(answers),
            float(np.percentile(ttft, slo.ttft_percentile)),
            float(np.percentile(itl, slo.itl_percentile)),
            float(late.mean()),
        )
