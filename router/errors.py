"""What can go wrong in the router, and what the caller can do about it.

RouterError             every error of this package
├── InvalidValue        an argument is wrong: the caller's bug or configuration
├── UnknownTarget       nobody is registered under that name: register first, or place elsewhere
├── IncompatibleCache   a worker's hashes are not the router's: a deployment's mistake
├── NoCandidate         every worker was filtered out, it says by which filter: answer 503
├── Rejected            the deadline cannot be met, or the queue is full: answer 429, Retry-After
└── UnknownReservation  it was freed before, or never made: nothing to do
"""

from collections.abc import Mapping

from stafette.kvtransfer.errors import InvalidValue as KvInvalidValue

_SHOWN = 10


class RouterError(Exception):
    """The base of this package's errors."""


class InvalidValue(RouterError, KvInvalidValue):
    """Names the argument that is wrong, the value it has, and what to do."""


class UnknownTarget(RouterError, KeyError):
    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.target = target

    def __str__(self) -> str:
        return f"{self.target} is not registered: register it before it is used"


class IncompatibleCache(RouterError):
    """Without this error every look-up for that worker would quietly find nothing."""

    def __init__(self, target: str, field: str, ours: object, theirs: object) -> None:
        super().__init__(target, field, ours, theirs)
        self.target = target
        self.field = field
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        return (
            f"{self.target} has {self.field} {self.theirs}, the router has {self.ours}: "
            f"give both the same, or its blocks would never be found"
        )


class NoCandidate(RouterError):
    """`reasons` tells for each worker which filter kept it out."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(dict(reasons))
        self.reasons = dict(reasons)

    def __str__(self) -> str:
        if not self.reasons:
            return "no worker is registered"
        shown = [f"{target}: {reason}" for target, reason in list(self.reasons.items())[:_SHOWN]]
        more = len(self.reasons) - len(shown)
        return (
            "no worker can take the request: " + "; ".join(shown) + (f"; {more} more" * (more > 0))
        )


class Rejected(RouterError):
    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason, retry_after_s)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.reason}; try again in {self.retry_after_s:.1f} s"


class UnknownReservation(RouterError, KeyError):
    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        return f"no request {self.request_id} is reserved: it was freed before, or never placed"
