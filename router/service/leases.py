"""Reservations, and workers, of those who may die without a word: a lease that has to be renewed.

A holder is whoever renews: a client, for all that it holds, or one thing for itself. Without a
lease nothing expires.
"""

from dataclasses import dataclass, field

from stafette.router.errors import InvalidValue


@dataclass(slots=True)
class _Holder:
    ttl_s: float
    until: float
    holds: dict[str, None] = field(default_factory=dict)  # in their order


class Leases:
    """Not thread-safe. A clock that goes backwards ends nothing early."""

    def __init__(self) -> None:
        self.expired = 0  # things that were held
        self._holders: dict[str, _Holder] = {}
        self._holder_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._holder_of)

    def hold(self, name: str, holder: str, ttl_s: float, now: float) -> None:
        """The holder answers for this; its latest time to live counts for all that it holds."""
        self.release(name)
        kept = self._holders.setdefault(holder, _Holder(ttl_s, now + ttl_s))
        kept.ttl_s = ttl_s
        kept.until = max(kept.until, now + ttl_s)
        kept.holds[name] = None
        self._holder_of[name] = holder

    def renew(self, name: str, now: float) -> None:
        """Whoever holds this lives; what is not held needs no renewal."""
        holder = self._holder_of.get(name)
        if holder is not None:
            self.renew_holder(holder, now)

    def renew_holder(self, holder: str, now: float) -> int:
        """Return how much it holds."""
        kept = self._holders.get(holder)
        if kept is None:
            return 0
        kept.until = max(kept.until, now + kept.ttl_s)
        return len(kept.holds)

    def release(self, name: str) -> None:
        holder = self._holder_of.pop(name, None)
        if holder is not None:
            kept = self._holders[holder]
            del kept.holds[name]
            if not kept.holds:
                del self._holders[holder]

    def expire(self, now: float) -> list[str]:
        """Return, and hold no more, what nobody renewed in time."""
        late = [kept for kept in self._holders.values() if kept.until <= now]
        gone = [name for kept in late for name in kept.holds]
        for name in gone:
            self.release(name)
        self.expired += len(gone)
        return gone


def check_ttl(ttl_s: float | None) -> None:
    if ttl_s is not None and not ttl_s > 0:
        raise InvalidValue("ttl_s", ttl_s, "must be above 0, or left out: then nothing expires")
