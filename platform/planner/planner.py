"""Decides: from what was observed to how many workers of which role there should be.

    planner = Planner(config, {"prefill": PoolSpec(role="prefill"), ...})
    plan = planner.plan(observation)

No I/O and no clock inside: time is what the observations say, so that the same object runs in
production, in the digital twin and in tests.
"""

from collections.abc import Mapping

from stafette.platform.planner.config import PlannerConfig
from stafette.platform.planner.observation import Observation
from stafette.platform.planner.plan import Plan
from stafette.platform.planner.pool_spec import PoolSpec


class Planner:
    def __init__(self, config: PlannerConfig, pools: Mapping[str, PoolSpec]) -> None:
        self.config = config
        self.pools = dict(pools)

    def plan(self, observation: Observation) -> Plan:
        """Return the wish of this moment. Call it every `interval_s`."""
        replicas = {name: state.target for name, state in observation.pools.items()}
        return Plan(at=observation.at, replicas=replicas, held="there is no policy yet")
