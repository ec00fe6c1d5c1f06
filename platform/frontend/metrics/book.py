"""The frontend's measurements: plain numbers, cheap to add to, since every token does."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

from stafette.kvtransfer.histogram import Histogram
from stafette.platform.frontend.metrics.recent import Recent
from stafette.platform.frontend.plans import Plan
from stafette.platform.observability.families import Bounded
from stafette.workers.request import OutputDelta

# Seconds; vLLM's bounds, so that its dashboards show ours.
_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_PER_TOKEN_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_TOKENS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000,
)  # fmt: skip

_MAX_TENANTS = 100  # that are told apart
# Told from the start, as 0: what Prometheus sees for the first time at 500 has no rate, so that an
# alert on failures would sleep through the first burst of them.
_STATUSES = (200, 429, 500, 503)
_REFUSALS = ("concurrency_limit_exceeded", "overloaded", "rate_limit_exceeded", "unavailable")


class Metrics:
    """All of one frontend's. `paths` are those whose failures somebody waits for."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.time_to_first_token = Histogram(_FIRST_TOKEN_S)
        self.inter_token_latency = Histogram(_PER_TOKEN_S)
        self.time_per_output_token = Histogram(_PER_TOKEN_S)  # a request's mean
        self.e2e_latency = Histogram(_REQUEST_S)
        self.request_prompt_tokens = Histogram(_TOKENS)
        self.request_generation_tokens = Histogram(_TOKENS)
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished: Counter[str] = Counter()  # answers, by reason
        responses = dict.fromkeys(product(paths, _STATUSES), 0)
        self.responses: Counter[tuple[str, int]] = Counter(responses)  # by path and status
        self.rejected: Counter[str] = Counter(dict.fromkeys(_REFUSALS, 0))  # by the error's code
        self.disconnects = 0
        self.recent = Recent()
        self.tenant_requests: Counter[str] = Counter()  # by API key's name
        self.tenant_tokens: Counter[tuple[str, str]] = Counter()  # by that and kind
        self._tenant_names = Bounded(_MAX_TENANTS)

    def tenant(self, name: str) -> str:
        """Return under which name an API key's requests are counted."""
        return self._tenant_names.of(name or "-")


class Meter:
    """Measures one request, from its arrival to its last token."""

    __slots__ = (
        "_arrived", "_clock", "_first", "_last", "_makes_tokens", "_metrics", "_prompt_tokens",
        "_tenant", "num_finished", "tokens",
    )  # fmt: skip

    def __init__(
        self, metrics: Metrics, clock: Callable[[], float], arrived: float, plan: Plan
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._arrived = arrived
        self._first: float | None = None
        self._last = 0.0
        self._prompt_tokens = plan.num_prompt_tokens
        self._makes_tokens = plan.makes_tokens
        self._tenant = plan.hints.tenant
        self.tokens = 0
        self.num_finished = 0  # answers

    def saw(self, deltas: Sequence[OutputDelta]) -> None:
        """Book what has just come."""
        count = 0
        for delta in deltas:
            count += len(delta.token_ids)
            if delta.finish_reason is not None:
                self._metrics.finished[delta.finish_reason] += 1
                self.num_finished += 1
        if count:
            self._count(count, self._clock())

    def close(self, num_answers: int) -> None:
        """Book the request as a whole; what has not finished was aborted."""
        metrics, now = self._metrics, self._clock()
        metrics.finished["abort"] += num_answers - self.num_finished
        if self._first is None:
            return
        metrics.e2e_latency.observe(now - self._arrived)
        metrics.request_prompt_tokens.observe(self._prompt_tokens)
        metrics.request_generation_tokens.observe(self.tokens)
        tenant = metrics.tenant(self._tenant)
        metrics.tenant_requests[tenant] += 1
        metrics.tenant_tokens[tenant, "prompt"] += self._prompt_tokens
        metrics.tenant_tokens[tenant, "generation"] += self.tokens
        per_token: float | None = None
        if self.tokens > 1:
            per_token = (self._last - self._first) / (self.tokens - 1)
            metrics.time_per_output_token.observe(per_token)
        metrics.recent.answered(now, self._first - self._arrived, per_token)

    def _count(self, count: int, now: float) -> None:
        metrics = self._metrics
        if self._makes_tokens:
            self.tokens += count
            metrics.generation_tokens += count
        if self._first is None:
            self._first = now
            metrics.time_to_first_token.observe(now - self._arrived)
            metrics.recent.saw_first_token(now, now - self._arrived)
            metrics.prompt_tokens += self._prompt_tokens
        else:
            metrics.inter_token_latency.observe((now - self._last) / count, count)
        self._last = now
