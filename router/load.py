"""What a target has to do: prompts that wait, sequences that run, blocks in use.

It is booked from the router's own decisions, corrected by what the worker itself reports, and kept
as long as the request lives: nothing expires.
"""

from collections import OrderedDict
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

from stafette.router.active import ActiveChains
from stafette.router.errors import InvalidValue, UnknownReservation

_MEMORY_S = 30.0  # over which a target's utilization is averaged
_STILL_S = 0.25  # in which that hardly changes: so long a view is kept where nothing else moves
_AGES = 16
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Stay:
    """What one request is to its target."""

    prompt_tokens: int
    uncached_tokens: int  # to be computed there
    prefill_ms: float  # predicted
    chain: bytes = b""
    computes: bool = True  # False: its prompt is computed elsewhere


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a worker says of itself, as of `at`, on the router's clock."""

    at: float
    queued_tokens: int  # of prompts, to be computed
    running: int  # sequences that decode
    used_blocks: int


class LoadView(NamedTuple):
    """A target's load at one moment, as plain values."""

    queue_ms: float = 0.0  # until a prompt that comes now would begin
    queued_tokens: int = 0
    waiting: int = 0  # requests before their first token
    running: int = 0  # and after it
    used_blocks: int = 0
    kv_tokens: int = 0  # of the running sequences' contexts
    utilization: float = 0.0  # share of late in which prompts were computed
    charged_tokens: int = 0  # queued ones, the first prompt's in full until its first token

    @property
    def requests(self) -> int:
        return self.waiting + self.running


IDLE = LoadView()


@dataclass(slots=True)
class _Request:
    stay: Stay
    since: float
    outputs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    report_lag_s: float = 0.5  # a report may not have seen what was sent to the worker so late
    report_valid_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("report_lag_s", "report_valid_s"):
            if not getattr(self, name) >= 0:
                raise InvalidValue(f"load.{name}", getattr(self, name), "must be at least 0")


class Load:
    """One target's books; not thread-safe."""

    def __init__(
        self,
        block_size: int,
        config: LoadConfig,
        changed: "set[Load] | None" = None,
        number: int = 0,
    ) -> None:
        """It puts itself into `changed`; loads of several numbers do not age at the same time."""
        self._changed = set() if changed is None else changed
        self._still_s = _STILL_S * (1.0 + number % _AGES / _AGES)
        self._block_size = block_size
        self._config = config
        self._queue: OrderedDict[str, _Request] = OrderedDict()  # first come, first served
        self._awaited: dict[str, _Request] = {}  # their prompts are computed elsewhere
        self._running: dict[str, _Request] = {}
        self._chains = ActiveChains()
        self._queued_ms = 0.0  # of the whole queue, what is done of its head included
        self._queued_tokens = 0
        self._head_began = 0.0
        self._output_blocks = 0
        self._kv_tokens = 0
        self._report: LoadReport | None = None
        self._utilization = 0.0
        self._seen_at = 0.0
        self._still = IDLE  # the latest view
        self.still_until = _NEVER  # so long it is as good as a new one

    def __contains__(self, request_id: str) -> bool:
        books = (self._queue, self._awaited, self._running)
        return any(request_id in book for book in books)

    @property
    def request_ids(self) -> list[str]:
        return [*self._queue, *self._awaited, *self._running]

    def shared(self, chain: bytes) -> int:
        """Return how many first blocks of a chain are in use there."""
        return self._chains.shared(chain)

    def reserve(self, request_id: str, stay: Stay, now: float) -> None:
        self._change(now)
        self._chains.add(stay.chain)
        request = _Request(stay, now)
        if not stay.computes:
            self._awaited[request_id] = request
            return
        if not self._queue:
            self._head_began = now
        self._queue[request_id] = request
        self._queued_ms += stay.prefill_ms
        self._queued_tokens += stay.uncached_tokens

    def first_token(self, request_id: str, now: float) -> None:
        """Its prompt is computed. Told twice is told once."""
        self._change(now)
        request = self._awaited.pop(request_id, None) or self._dequeue(request_id, now)
        if request is None:
            return
        self._running[request_id] = request
        self._kv_tokens += request.stay.prompt_tokens

    def progress(self, request_id: str, output_tokens: int) -> None:
        """So many tokens were put out so far."""
        request = self._running.get(request_id)
        if request is None or output_tokens <= request.outputs:
            return
        self._unsettle()
        self._output_blocks += self._blocks(output_tokens) - self._blocks(request.outputs)
        self._kv_tokens += output_tokens - request.outputs
        request.outputs = output_tokens

    def free(self, request_id: str, now: float) -> None:
        self._change(now)
        request = self._awaited.pop(request_id, None) or self._dequeue(request_id, now)
        if request is None:
            request = self._running.pop(request_id, None)
            if request is None:
                raise UnknownReservation(request_id)
            self._kv_tokens -= request.stay.prompt_tokens + request.outputs
        self._output_blocks -= self._blocks(request.outputs)
        self._chains.remove(request.stay.chain)

    def report(self, report: LoadReport) -> None:
        """The newest one counts."""
        if self._report is None or report.at >= self._report.at:
            self._report = report
            self._unsettle()

    def view(self, now: float, ms_per_token: float = 0.0) -> LoadView:
        """Return the load; `ms_per_token` is for what others have queued there."""
        if self._seen_at <= now < self.still_until:
            return self._still
        self._watch(now)
        queue_ms, tokens = self._booked(now) if self._queue else (0.0, 0)
        still_until = _NEVER if self._queue else now + self._still_s
        running = len(self._running)
        used = self._chains.num_blocks + self._output_blocks
        report = self._report
        if report is not None and now - report.at <= self._config.report_valid_s:
            ms_per_token = queue_ms / tokens if tokens else ms_per_token
            unseen_tokens, unseen_blocks = self._unseen(report)
            tokens = report.queued_tokens + unseen_tokens
            queue_ms = tokens * ms_per_token
            running = max(running, report.running)
            used = max(used, report.used_blocks + unseen_blocks)
            still_until = min(now + self._still_s, report.at + self._config.report_valid_s)
        waiting = len(self._queue) + len(self._awaited)
        kv_tokens, utilization = self._kv_tokens, self._utilization
        charged = self._queued_tokens
        self.still_until = still_until
        self._still = LoadView(
            queue_ms, tokens, waiting, running, used, kv_tokens, utilization, charged
        )
        return self._still

    def _dequeue(self, request_id: str, now: float) -> _Request | None:
        request = self._queue.get(request_id)
        if request is None:
            return None
        if request_id == next(iter(self._queue)):
            self._head_began = now
        del self._queue[request_id]
        self._queued_ms -= request.stay.prefill_ms
        self._queued_tokens -= request.stay.uncached_tokens
        if not self._queue:
            self._queued_ms = 0.0  # no dust of rounding
        return request

    def _booked(self, now: float) -> tuple[float, int]:
        """Return milliseconds and tokens of the queue, less what its head must have done by now."""
        head = next(iter(self._queue.values())).stay
        done_ms = min(max(0.0, (now - self._head_began) * 1e3), head.prefill_ms)
        share = done_ms / head.prefill_ms if head.prefill_ms else 0.0
        return self._queued_ms - done_ms, self._queued_tokens - int(share * head.uncached_tokens)

    def _unseen(self, report: LoadReport) -> tuple[int, int]:
        """Return tokens and blocks of what was sent too late for the report."""
        tokens = blocks = 0
        for request in reversed(self._queue.values()):
            if request.since <= report.at - self._config.report_lag_s:
                break
            tokens += request.stay.uncached_tokens
            blocks += self._blocks(request.stay.uncached_tokens)
        return tokens, blocks

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def _change(self, now: float) -> None:
        self._watch(now)
        self._unsettle()

    def _unsettle(self) -> None:
        self.still_until = _NEVER
        self._changed.add(self)

    def _watch(self, now: float) -> None:
        """Take the time since the last look into the utilization."""
        passed = now - self._seen_at
        if passed <= 0:  # a clock that goes backwards changes nothing
            return
        kept = exp(-passed / _MEMORY_S)
        self._utilization = self._utilization * kept + bool(self._queue) * (1.0 - kept)
        self._seen_at = now
