"""Policies by name. A new one is a file in `policies/` and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from stafette.router.errors import InvalidValue
from stafette.router.policies.dynamo import DynamoConfig, DynamoPolicy
from stafette.router.policies.kv import KvPolicy
from stafette.router.policies.simple import (
    LeastLoadedPolicy,
    PowerOfTwoPolicy,
    PrefixAffinityPolicy,
    RandomPolicy,
    RoundRobinPolicy,
    SessionPolicy,
)
from stafette.router.policy import Policy

PolicyName = Literal[
    "kv",
    "round_robin",
    "random",
    "least_loaded",
    "power_of_two",
    "prefix_affinity",
    "session",
    "dynamo",
]
NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
EVENTLESS = frozenset(NAMES) - {"kv", "dynamo"}  # what is cached where does not matter to them


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    name: PolicyName = "kv"
    prefix_blocks: int = 16  # prefix_affinity: of a prompt's beginning
    crowd_factor: float = 1.5  # prefix_affinity: of the mean number of requests
    dynamo: DynamoConfig = DynamoConfig()

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise InvalidValue("policy.name", self.name, f"must be one of {', '.join(NAMES)}")
        if self.prefix_blocks < 1:
            raise InvalidValue("policy.prefix_blocks", self.prefix_blocks, "must be at least 1")
        if not self.crowd_factor >= 1:
            raise InvalidValue("policy.crowd_factor", self.crowd_factor, "must be at least 1")


_POLICIES: dict[PolicyName, Callable[[PolicyConfig], Policy]] = {
    "kv": lambda config: KvPolicy(),
    "round_robin": lambda config: RoundRobinPolicy(),
    "random": lambda config: RandomPolicy(),
    "least_loaded": lambda config: LeastLoadedPolicy(),
    "power_of_two": lambda config: PowerOfTwoPolicy(),
    "prefix_affinity": lambda c: PrefixAffinityPolicy(c.prefix_blocks, c.crowd_factor),
    "session": lambda config: SessionPolicy(),
    "dynamo": lambda config: DynamoPolicy(config.dynamo),
}


def make_policy(config: PolicyConfig) -> Policy:
    return _POLICIES[config.name](config)
