"""Decides: from what was observed to how many workers of which role there should be.

    planner = Planner(config, {"prefill": PoolSpec(role="prefill"), ...})
    plan = planner.plan(observation)

No I/O and no clock inside: time is what the observations say, so that the same object runs in
production, in the digital twin and in tests.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.beliefs import Beliefs
from stafette.platform.planner.budget import Budget, may_be_late
from stafette.platform.planner.checks import Checks
from stafette.platform.planner.config import PlannerConfig
from stafette.platform.planner.explaining import explain
from stafette.platform.planner.live import Live, LiveSeen
from stafette.platform.planner.local_work import LocalWork
from stafette.platform.planner.measured import Measured
from stafette.platform.planner.observation import Observation, WorkerState
from stafette.platform.planner.pins import Pins
from stafette.platform.planner.plan import Explanation, Plan, RoleFlip
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.platform.planner.releasing import Releasing
from stafette.platform.planner.replicas import Replicas, Wish
from stafette.platform.planner.roles import Roles
from stafette.platform.planner.shape import Shape, ShapeSeen
from stafette.platform.planner.situation import Situation
from stafette.platform.planner.startups import Startups
from stafette.platform.planner.traffic import Traffic
from stafette.platform.planner.velocity import most_decoding

_PILED_UP = 0.5  # of the time to the first token is queued
# Of what a worker decodes at most: routers give prompts to those who have time for them, and only
# what they give to the others as well takes it from answers.
_NEARLY_FULL = 0.8
_ASSUMED = Shape.of(prompt=2_000, output=250)


class Planner:
    """`assumed` is what requests are taken to look like before there were any."""

    def __init__(
        self, config: PlannerConfig, pools: Mapping[str, PoolSpec], assumed: Shape = _ASSUMED
    ) -> None:
        _check(pools)
        self.config = config
        self.pools = dict(pools)
        self.pins = Pins(pools)
        self.plans: deque[Plan] = deque(maxlen=config.plans_kept)
        startups = Startups({name: spec.limits for name, spec in pools.items()})
        slowest = max(spec.limits.startup_s for spec in pools.values())
        horizon = slowest + config.replicas_interval_s + config.bin_s
        self.beliefs = Beliefs(config, self.pools)
        share = may_be_late(config.slo)
        self.traffic = Traffic(config.bin_s, horizon, config.quantile, share)
        self._budget = Budget(config.slo, config.promise_window_s)
        self._checks = Checks(config.interval_s, self.pools)
        self._shape = ShapeSeen(assumed)
        self._live = LiveSeen()
        self._measured = Measured(config.slo)
        self._startups = startups
        self._local = LocalWork()
        self._replicas = Replicas(config, self.pools, self.beliefs, startups)
        self._releasing = Releasing()
        self._roles = Roles(self.beliefs.sizer) if self.beliefs.flippable else None
        self._wish: Wish | None = None

    def plan(self, observation: Observation) -> Plan:
        """Return the wish of this moment. Call it every `interval_s`."""
        wrong = self._checks.wrong(observation)
        if wrong is not None:
            plan = self._hold(observation, wrong)
        else:
            plan = self._decide(observation)
        self.plans.append(plan)
        return plan

    def _hold(self, seen: Observation, why: str) -> Plan:
        self.traffic.forget_gap()
        replicas = {name: state.target for name, state in seen.pools.items()}
        if self._wish is not None:
            replicas = dict(self._wish.replicas)
        return Plan(
            at=seen.at, replicas=replicas, held=why, explanation=Explanation(decided_by="hold")
        )

    def _decide(self, seen: Observation) -> Plan:
        now = self._situation(seen)
        self._wish = self._replicas.decide(now)
        replicas = {name: self._wish.replicas[name] for name in self.pools}
        pinned = self.pins.active(seen.at)
        for name, pin in pinned.items():
            replicas[name] = pin.replicas
        release = self._releasing.choose(seen, replicas)
        flips = self._flips(now, set(release))
        return Plan(
            at=seen.at,
            replicas=replicas,
            flips=flips,
            release=release,
            violations=self._replicas.violations(now, replicas),
            explanation=explain(now, self._wish, self.beliefs, pinned),
        )

    def _situation(self, seen: Observation) -> Situation:
        serving = [w for w in seen.workers if w.pool in self.pools and not w.draining]
        self.beliefs.learn(serving)
        self.traffic.see(seen)
        self._shape.see(seen.started, seen.finished)
        self._measured.see(seen.at, seen.finished)
        self._budget.see(seen.at, seen.finished)
        self._startups.see(seen.at, seen.pools)
        live = self._live.see(seen.at, serving)
        return Situation(
            at=seen.at,
            observation=seen,
            workers=tuple(serving),
            rates=self.traffic.rates(),
            shape=self._shape.shape(),
            live=live,
            kept=self._measured.kept(),
            local_ms=self._local_ms(seen, serving, live),
            may_be_late=self._budget.at_once,
            idle_s=seen.at - self.traffic.idle_since
            if self.traffic.idle_since is not None
            else 0.0,
        )

    def _local_ms(self, seen: Observation, serving: list[WorkerState], live: Live) -> float:
        slo, decode, shape = self.config.slo, self.beliefs.decode, self._shape.shape()
        queued_ms = live.queued_tokens * decode.performance.prefill_ms_per_token
        return self._local.see(
            seen.at,
            serving,
            decode,
            shape,
            busy_from=_NEARLY_FULL * most_decoding(decode, shape, slo),
            piled_up=seen.waiting > 0 or queued_ms > _PILED_UP * slo.ttft_ms * max(1, len(serving)),
        )

    def _flips(self, now: Situation, going: set[str]) -> list[RoleFlip]:
        if self._roles is None:
            return []
        staying = [w for w in now.workers if w.name not in going]
        self._roles.sizer = self.beliefs.sizer
        least = now.live.least_decode(self.beliefs.decode, now.shape, self.config.slo)
        demand = now.demand_now(self.beliefs.sizer, len(staying), self.config.drain_backlog_s)
        return self._roles.decide(now.at, staying, replace(demand, least_decode=least))


def _check(pools: Mapping[str, PoolSpec]) -> None:
    roles = {spec.role for spec in pools.values()}
    if not roles & {"decode", "both"}:
        raise InvalidSetting("planner.pools", sorted(pools), "must have one that decodes")
