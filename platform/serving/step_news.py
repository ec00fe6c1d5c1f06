"""The steps that workers report with their load, each once."""

from collections.abc import Mapping, Sequence

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import whole
from stafette.router.performance import StepReport

_MAX_STEPS = 1_024
_U63_END = 1 << 63


class StepNews:
    def __init__(self) -> None:
        self._known: dict[int, int] = {}  # by a worker's epoch: how many steps it has told

    def of(self, epoch: int, load: Mapping[str, object]) -> Sequence[StepReport]:
        """Return the steps that a worker has not told before."""
        first, reports = _read_steps(load)
        known = self._known.get(epoch, first)
        self._known[epoch] = first + len(reports)
        return reports[max(0, known - first) :]

    def forget(self, epoch: int) -> None:
        self._known.pop(epoch, None)


def _read_steps(load: Mapping[str, object]) -> tuple[int, list[StepReport]]:
    """Return the number of the first step that a worker tells of, and what it tells."""
    match load.get("steps"):
        case None:
            return 0, []
        case [first, list(rows)] if len(rows) <= _MAX_STEPS:
            return whole(first, "first step", _U63_END), [_read_step(row) for row in rows]
    raise MalformedMessage("steps", "[number of the first, rows]")


def _read_step(row: object) -> StepReport:
    match row:
        case [float(wall_ms), int(tokens), int() | float() as pairs, int(seqs), int(kv_tokens)]:
            return StepReport(wall_ms, tokens, float(pairs), seqs, kv_tokens)
    raise MalformedMessage("step", "[milliseconds, tokens, pairs, sequences, KV tokens]")
