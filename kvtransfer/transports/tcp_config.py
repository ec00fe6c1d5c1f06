"""The options of the TCP transport."""

from dataclasses import dataclass

from stafette.kvtransfer.errors import InvalidValue

MAX_FRAME_BYTES = 64 << 20
_ABOVE_ZERO = ("stall_timeout_s", "dial_timeout_s")
_AT_LEAST_ONE = ("streams", "max_requests", "max_connections")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpConfig:
    streams: int = 2  # to each peer; with several, the first one is for small jobs
    small_bytes: int = 256 << 10  # up to here a job is small
    spread_bytes: int = 64 << 20  # from here on a job is spread over all streams for large ones
    frame_bytes: int = 2 << 20  # after so many bytes it is another job's turn
    max_requests: int = 64  # under way on one connection; the owner refuses more
    max_connections: int = 1_024  # of all peers together, each with a thread
    stall_timeout_s: float = 10.0  # for a peer to take a frame, or to say the rest of one
    dial_timeout_s: float = 5.0
    ask_us: int = 100  # who waits for an answer asks so long, giving way to others, then sleeps
    native: bool = True  # False: without the native library, as where it was not built

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise InvalidValue(f"tcp.{name}", getattr(self, name), "must be at least 1")
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InvalidValue(f"tcp.{name}", getattr(self, name), "must be above 0")
        for name in ("small_bytes", "ask_us"):
            if getattr(self, name) < 0:
                raise InvalidValue(f"tcp.{name}", getattr(self, name), "must be at least 0")
        if self.spread_bytes <= self.small_bytes:
            remedy = f"must be above small_bytes, {self.small_bytes}"
            raise InvalidValue("tcp.spread_bytes", self.spread_bytes, remedy)
        if not 4_096 <= self.frame_bytes <= MAX_FRAME_BYTES:
            remedy = f"must be in 4096..{MAX_FRAME_BYTES}"
            raise InvalidValue("tcp.frame_bytes", self.frame_bytes, remedy)
