"""Eviction policies by their names in the configuration."""

from difflib import get_close_matches

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.tiers.policies.adaptive import Adaptive
from stafette.kvtransfer.tiers.policies.lfu import Lfu
from stafette.kvtransfer.tiers.policies.lru import Lru
from stafette.kvtransfer.tiers.policies.s3fifo import S3Fifo
from stafette.kvtransfer.tiers.policies.two_queue import TwoQueue
from stafette.kvtransfer.tiers.policy import EvictionPolicy

POLICIES: dict[str, type[EvictionPolicy]] = {
    "adaptive": Adaptive,
    "lfu": Lfu,
    "lru": Lru,
    "s3fifo": S3Fifo,
    "two_queue": TwoQueue,
}
DEFAULT_POLICY = "adaptive"


def check_policy(field: str, name: str) -> None:
    """Raise InvalidValue for a name that no policy has."""
    if name not in POLICIES:
        near = get_close_matches(name, POLICIES, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise InvalidValue(field, name, f"must be one of {', '.join(POLICIES)}{hint}")


def make_policy(name: str, capacity: int) -> EvictionPolicy:
    check_policy("policy", name)
    return POLICIES[name](capacity)
