"""What a request must keep to count as good: ttft:500 tpot:30 e2e:5000, in ms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stafette.platform.bench.record import Record
from stafette.platform.frontend.errors import InvalidSetting

_STREAMED = ("ttft", "tpot")
_NAMES = (*_STREAMED, "e2e")


@dataclass(frozen=True, slots=True)
class Slo:
    limits_ms: Mapping[str, float]

    def kept(self, record: Record) -> bool:
        """A request that a limit says nothing of, as TPOT of a single token, keeps it."""
        for name, limit_ms in self.limits_ms.items():
            value = getattr(record, f"{name}_s")
            if value is not None and value * 1e3 > limit_ms:
                return False
        return record.ok

    def to_dict(self) -> dict[str, Any]:
        return dict(self.limits_ms)


def read_slo(given: Sequence[str], stream: bool) -> Slo | None:
    limits: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition(":")
        if name not in _NAMES:
            remedy = f"must be NAME:MS, of {', '.join(_NAMES)}"
            raise InvalidSetting("--goodput", text, remedy)
        if name in _STREAMED and not stream:
            remedy = f"{name} is not to be seen with --no-stream: leave one of them out"
            raise InvalidSetting("--goodput", text, remedy)
        if name in limits:
            raise InvalidSetting("--goodput", text, f"names {name} twice")
        limits[name] = _number(text, value)
    return Slo(limits) if limits else None


def _number(text: str, value: str) -> float:
    try:
        limit = float(value)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise InvalidSetting("--goodput", text, "needs a number of milliseconds above 0")
    return limit
