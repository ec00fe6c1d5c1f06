"""How many requests are let in: of each key by its own limits, of all together by one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stafette.platform.frontend.errors import TooMany
from stafette.platform.frontend.keys import ApiKey

_RETRY_S = 1.0  # how soon a place may be free: nobody knows


class TokenBucket:
    """Holds one token a request; fills up steadily, to what one minute brings."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._rate = per_minute / 60.0
        self._size = max(1.0, per_minute)
        self._tokens = self._size
        self._at = now

    def take(self, now: float) -> float:
        """Take a token and return 0, or return how many seconds are missing to one."""
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._rate
        self._tokens -= 1.0
        return 0.0


@dataclass(slots=True)
class _Tenant:
    bucket: TokenBucket | None
    in_flight: int = 0


class Gate:
    """Lets requests in, or says when to come again."""

    def __init__(self, max_in_flight: int, clock: Callable[[], float]) -> None:
        self.in_flight = 0
        self.is_open = True  # False: it is about to end, which /ready tells
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}

    @contextmanager
    def admit(self, key: ApiKey | None) -> Iterator[None]:
        """Hold one place as long as the request is inside; TooMany when there is none."""
        if self.in_flight >= self._max_in_flight:
            message = f"{self.in_flight} requests are in flight, the most that are taken: retry"
            raise TooMany(message, _RETRY_S, code="overloaded")
        tenant = self._admitted(key) if key is not None else _Tenant(None)
        tenant.in_flight += 1
        self.in_flight += 1
        try:
            yield
        finally:
            tenant.in_flight -= 1
            self.in_flight -= 1

    def _admitted(self, key: ApiKey) -> _Tenant:
        tenant = self._tenants.get(key.name)
        if tenant is None:
            rate = key.requests_per_minute
            bucket = TokenBucket(rate, self._clock()) if rate is not None else None
            tenant = self._tenants[key.name] = _Tenant(bucket)
        if key.max_concurrent is not None and tenant.in_flight >= key.max_concurrent:
            message = f"key {key.name} has {tenant.in_flight} requests in flight, its limit: wait"
            raise TooMany(message, _RETRY_S, code="concurrency_limit_exceeded")
        missing_s = tenant.bucket.take(self._clock()) if tenant.bucket is not None else 0.0
        if missing_s:
            limit = f"{key.requests_per_minute:g} requests a minute"
            raise TooMany(f"key {key.name} has used its {limit}: wait", missing_s)
        return tenant
