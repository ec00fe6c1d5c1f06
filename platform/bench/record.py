"""What one request showed, and what its times are called.

The definitions are aiperf's (NVIDIA's client, 0.13): a time counts from the moment before the
request is sent, and only events that bring some of the answer count: neither the role that a chat
begins with, nor the usage behind its end.

    here      vLLM                   aiperf
    ttft      TTFT                   time_to_first_token       first event
    e2e       E2EL                   request_latency           last event
    tpot      TPOT                   inter_token_latency       (e2e - ttft) / (output tokens - 1)
    itl       ITL                    inter_chunk_latency       from each event to the next
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Times in seconds: `began_s` since the level began, `chunks_s` since the request began."""

    number: int
    began_s: float
    session: str = ""
    turn: int = 0
    late_s: float = 0.0  # after it was due
    chunks_s: tuple[float, ...] = ()  # when each event came; the whole answer where none streams
    streamed: bool = True
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # None: the server does not tell
    output_tokens: int = 0
    ended_s: float = 0.0  # since the request began
    error: str = ""  # its kind; "" of an answer

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def ttft_s(self) -> float | None:
        return self.chunks_s[0] if self.streamed and self.ok else None

    @property
    def e2e_s(self) -> float | None:
        return self.chunks_s[-1] if self.ok else None

    @property
    def tpot_s(self) -> float | None:
        if not self.ok or not self.streamed or self.output_tokens < 2:
            return None
        return (self.chunks_s[-1] - self.chunks_s[0]) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        if not self.ok or not self.streamed:
            return []
        pairs = zip(self.chunks_s, self.chunks_s[1:], strict=False)
        return [after - before for before, after in pairs]

    def to_dict(self) -> dict[str, Any]:
        told = asdict(self)
        told["chunks_s"] = [round(at, 6) for at in self.chunks_s]
        return told

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Record":
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in told.items() if name in known}
        return cls(**values | {"chunks_s": tuple(told.get("chunks_s", ()))})


def in_order(records: Sequence[Record]) -> list[Record]:
    """Return records as their requests began; they come as they end."""
    return sorted(records, key=lambda record: record.began_s)
