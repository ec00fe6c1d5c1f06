"""Requests that have to wait before they are placed: by class, fairly between tenants, in time.

Classes are strict: the higher priority goes first. Within a class tenants take turns, each turn
worth as many uncached tokens (deficit round robin), so long prompts of one do not starve another.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from stafette.router.errors import InvalidValue, NoCandidate, Rejected
from stafette.router.request import Request
from stafette.router.router import KvRouter, Placement

_MIN_RETRY_S = 1.0
_RATE_MEMORY = 0.1  # the weight of the newest measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    max_target_queue_ms: float | None = None  # requests wait here above it; None: they never do
    max_waiting: int = 10_000  # requests
    quantum_tokens: int = 8_192  # of a tenant's turn
    weights: Mapping[str, float] = field(default_factory=dict)  # of tenants, in turns; else 1

    def __post_init__(self) -> None:
        if self.max_target_queue_ms is not None and not self.max_target_queue_ms >= 0:
            value = self.max_target_queue_ms
            raise InvalidValue("admission.max_target_queue_ms", value, "must be at least 0 or None")
        for name in ("max_waiting", "quantum_tokens"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"admission.{name}", getattr(self, name), "must be at least 1")
        for tenant, weight in self.weights.items():
            if not weight > 0:
                raise InvalidValue(f"admission.weights[{tenant!r}]", weight, "must be above 0")


@dataclass(frozen=True, slots=True)
class Waiting:
    request: Request
    tokens: int  # that it will have to compute
    arrived: float

    @property
    def ends(self) -> float:
        """When its first token is due."""
        deadline_s = self.request.deadline_s
        return float("inf") if deadline_s is None else self.arrived + deadline_s


class _Class:
    """One priority's requests; tenants in the order of their turns."""

    def __init__(self, config: AdmissionConfig) -> None:
        self.tokens = 0
        self._config = config
        self._tenants: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._credit: dict[str, float] = {}  # tokens left of the turn

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def push(self, waiting: Waiting) -> None:
        tenant = waiting.request.tenant
        if tenant not in self._tenants:
            self._tenants[tenant] = deque()
            self._credit[tenant] = self._turn(tenant)
        self._tenants[tenant].append(waiting)
        self.tokens += waiting.tokens

    def head(self) -> Waiting:
        """Return who is next; turns pass until somebody can pay."""
        while True:
            tenant, queue = next(iter(self._tenants.items()))
            if queue[0].tokens <= self._credit[tenant] or len(self._tenants) == 1:
                return queue[0]
            self._credit[tenant] += self._turn(tenant)
            self._tenants.move_to_end(tenant)

    def pop(self) -> Waiting:
        """Take the head away."""
        waiting = self.head()
        tenant = waiting.request.tenant
        self._credit[tenant] = max(0.0, self._credit[tenant] - waiting.tokens)
        self._tenants[tenant].popleft()
        self.tokens -= waiting.tokens
        self._forget_idle(tenant)
        return waiting

    def expire(self, now: float) -> list[Waiting]:
        gone: list[Waiting] = []
        for tenant, queue in list(self._tenants.items()):
            late = [waiting for waiting in queue if waiting.ends <= now]
            if late:
                kept = [waiting for waiting in queue if waiting.ends > now]
                self._tenants[tenant] = deque(kept)
                self.tokens -= sum(waiting.tokens for waiting in late)
                self._forget_idle(tenant)
                gone += late
        return gone

    def _forget_idle(self, tenant: str) -> None:
        """Who has nothing waiting saves nothing up."""
        if not self._tenants[tenant]:
            del self._tenants[tenant], self._credit[tenant]

    def _turn(self, tenant: str) -> float:
        return self._config.quantum_tokens * self._config.weights.get(tenant, 1.0)


class AdmissionQueue:
    """The requests that wait, and how fast they go. Not thread-safe."""

    def __init__(self, config: AdmissionConfig) -> None:
        self.config = config
        self.rejected = 0
        self._classes: dict[int, _Class] = {}
        self._count = 0
        self._tokens_per_s = 0.0  # 0: nothing went yet
        self._last_pop: float | None = None

    def __len__(self) -> int:
        return self._count

    def push(self, waiting: Waiting, ttft_s: float, now: float) -> None:
        """Let it wait; Rejected where its deadline cannot be met, or the queue is full."""
        wait_s = self.wait_s(waiting.request.priority)
        if self._count >= self.config.max_waiting:
            self._reject(f"{self._count} requests wait already", wait_s)
        late_s = now + wait_s + ttft_s - waiting.ends
        if late_s > 0:
            self._reject(f"the first token would come {late_s:.1f} s too late", late_s)
        priority = waiting.request.priority
        self._classes.setdefault(priority, _Class(self.config)).push(waiting)
        self._count += 1

    def wait_s(self, priority: int) -> float:
        """Return how long a request of this class would wait, as things go now."""
        ahead = sum(c.tokens for own, c in self._classes.items() if own >= priority)
        return ahead / self._tokens_per_s if self._tokens_per_s else 0.0

    def head(self) -> Waiting | None:
        best = self._best()
        return None if best is None else self._classes[best].head()

    def pop(self, now: float) -> Waiting:
        """Take the head, which is placed now."""
        best = self._best()
        assert best is not None, "nobody waits"
        waiting = self._classes[best].pop()
        self._measure(waiting.tokens, now)
        self._left(1)
        return waiting

    def expire(self, now: float) -> list[Waiting]:
        """Take out those whose deadline has passed."""
        late = [waiting for each in self._classes.values() for waiting in each.expire(now)]
        self._left(len(late))
        return late

    def _best(self) -> int | None:
        return max((priority for priority, own in self._classes.items() if own), default=None)

    def _left(self, count: int) -> None:
        self._count -= count
        self._classes = {priority: own for priority, own in self._classes.items() if own}
        if not self._count:
            self._last_pop = None  # what comes after a pause tells nothing of the rate

    def _measure(self, tokens: int, now: float) -> None:
        if self._last_pop is not None and now > self._last_pop:
            rate = tokens / (now - self._last_pop)
            known = self._tokens_per_s or rate
            self._tokens_per_s = known + _RATE_MEMORY * (rate - known)
        self._last_pop = now

    def _reject(self, reason: str, wait_s: float) -> None:
        self.rejected += 1
        raise Rejected(reason, max(_MIN_RETRY_S, wait_s))


class Admission:
    """Places a request when some target is free enough, and lets it wait until then."""

    def __init__(self, router: KvRouter, config: AdmissionConfig) -> None:
        self.queue = AdmissionQueue(config)
        self._router = router

    def offer(self, request: Request, now: float) -> Placement | None:
        """Place it, or return None and let it wait; Rejected says when to try again."""
        selected = self._router.preview(request)
        tokens = request.prompt_tokens - selected.cached_tokens
        waiting = Waiting(request, tokens, now)
        if not len(self.queue) and self._has_room(request, now):
            late_s = now + selected.ttft_ms / 1e3 - waiting.ends
            if late_s > 0:
                reason = f"the first token would come {late_s:.1f} s too late"
                raise Rejected(reason, max(_MIN_RETRY_S, late_s))
            return self._router.place(request)
        self.queue.push(waiting, selected.ttft_ms / 1e3, now)
        return None

    def poll(self, now: float) -> list[tuple[Request, Placement | Rejected | NoCandidate]]:
        """Place those whose turn it is; tell of those who waited too long. Call it when work ends,
        and now and then."""
        settled: list[tuple[Request, Placement | Rejected | NoCandidate]] = []
        for late in self.queue.expire(now):
            waited_s = now - late.arrived
            reason = f"it waited {waited_s:.1f} s for a free worker"
            settled.append((late.request, Rejected(reason, max(_MIN_RETRY_S, waited_s))))
        while (head := self.queue.head()) is not None and self._has_room(head.request, now):
            self.queue.pop(now)
            settled.append((head.request, self._place(head.request)))
        return settled

    def _has_room(self, request: Request, now: float) -> bool:
        most = self.queue.config.max_target_queue_ms
        return most is None or self._router.fleet.least_queue_ms(request, now) <= most

    def _place(self, request: Request) -> Placement | NoCandidate:
        try:
            return self._router.place(request)
        except NoCandidate as error:  # they left while it waited
            return error
