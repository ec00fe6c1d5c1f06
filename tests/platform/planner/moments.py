"""Observations without a fleet: so many requests a second, served by whoever there is."""

import numpy as np

from stafette.platform.planner.config import PlannerConfig, PoolLimits, SloConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.observation import (
    Finished,
    Observation,
    PoolState,
    Started,
    WorkerState,
)
from stafette.platform.planner.planner import Planner
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.router.performance import Performance

MODEL = EngineModel(
    performance=Performance(
        step_ms=10, prefill_ms_per_token=0.1, prefill_ms_per_pair=0, decode_ms_per_seq=1
    )
)
SLO = SloConfig(ttft_ms=1_000, itl_ms=40)


def planner(flips=True, least=0, most=16, startup_s=60.0, **options):
    limits = options.pop("limits", None) or PoolLimits(
        min_replicas=least, max_replicas=most, startup_s=startup_s
    )
    config = PlannerConfig(
        mode="on",
        slo=options.pop("slo", SLO),
        flips=flips,
        pools={"prefill": limits, "decode": limits},
        **options,
    )
    pools = {
        role: PoolSpec(role=role, limits=limits, worker_class="one" if flips else role, model=MODEL)
        for role in ("prefill", "decode")
    }
    return Planner(config, pools)


class Moments:
    """Carries plans out, after `startup_s`; workers are as busy as the rate makes them."""

    def __init__(self, planner, prefill=1, decode=1, startup_s=0.0, pace_s=1.0, comes=None, seed=1):
        self.planner = planner
        self.at = 0.0
        self.pace_s = pace_s
        self.startup_s = startup_s
        self.comes = comes or (lambda pool, count: True)
        self.targets = {"prefill": prefill, "decode": decode}
        self.workers = {}  # name -> [pool, role, ready at]
        self.plans = []
        self.random = np.random.default_rng(seed)
        self._made = 0
        self._fill(0.0)

    def go_on(self, seconds, rate, prompt=2_000, output=100, **told):
        for _ in range(round(seconds / self.pace_s)):
            self.step(rate, prompt, output, **told)
        return self.plans[-1]

    def step(self, rate, prompt=2_000, output=100, **told):
        self.at += self.pace_s
        plan = self.planner.plan(self.observe(rate, prompt, output, **told))
        self.plans.append(plan)
        for flip in plan.flips:
            self.workers[flip.worker][1] = flip.role
        for name in plan.release:
            del self.workers[name]
        self.targets.update(plan.replicas)
        self._fill(self.startup_s)
        return plan

    def observe(self, rate, prompt, output, **told):
        count = int(self.random.poisson(rate * self.pace_s))
        ready = {name: w for name, w in self.workers.items() if w[2] <= self.at}
        deciding = [name for name, w in ready.items() if w[1] != "prefill"]
        running = rate * output * 0.02 / max(1, len(deciding))
        states = [
            WorkerState(
                name=name,
                pool=pool,
                role=role,
                age_s=self.at - since,
                running=round(running) if name in deciding else 0,
                used_kv_tokens=round(running * prompt) if name in deciding else 0,
            )
            for name, (pool, role, since) in ready.items()
        ]
        observed = {
            "at": self.at,
            "window_s": self.pace_s,
            "arrivals": count,
            "started": [Started(prompt)] * count,
            "finished": [Finished(prompt, output, 400.0, 20.0)] * count,
            "workers": states,
            "pools": {pool: self._pool(pool) for pool in self.targets},
        }
        return Observation(**(observed | told))

    @property
    def changes(self):
        pairs = zip(self.plans, self.plans[1:], strict=False)
        return [after.at for before, after in pairs if after.replicas != before.replicas]

    @property
    def roles(self):
        return sorted(role for _, role, _ in self.workers.values())

    def _pool(self, pool):
        there = [w for w in self.workers.values() if w[0] == pool]
        ready = sum(w[2] <= self.at for w in there)
        target = self.targets[pool]
        return PoolState(target=target, ready=ready, starting=max(0, target - ready))

    def _fill(self, startup_s):
        for pool, target in self.targets.items():
            there = sum(w[0] == pool for w in self.workers.values())
            for number in range(there, target):
                if self.comes(pool, number):
                    self._made += 1
                    self.workers[f"{pool}-{self._made}"] = [pool, pool, self.at + startup_s]
            waiting = [n for n, w in self.workers.items() if w[0] == pool and w[2] > self.at]
            for name in waiting[: max(0, there - target)]:
                del self.workers[name]
