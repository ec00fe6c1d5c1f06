"""Lets the planner run a twin's fleet, as it would run a real one."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from stafette.platform.planner.config import PlannerConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.observation import (
    Finished,
    Observation,
    PoolState,
    Started,
    WorkerState,
)
from stafette.platform.planner.plan import Plan
from stafette.platform.planner.planner import Planner
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.platform.twin.config import TwinConfig
from stafette.platform.twin.fleet import Fleet, Replica
from stafette.platform.twin.tally import Served
from stafette.platform.twin.twin import Twin
from stafette.router.performance import StepReport
from stafette.workers.mocker.core import Mocker
from stafette.workers.mocker.speed_profile import Profile


class Planned:
    """A twin's `on_tick`. Keeps the plans, each with what was seen."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.plans: list[Plan] = []
        self._pace_s = planner.config.interval_s
        self._next_s = 0.0

    def __call__(self, twin: Twin, now: float) -> None:
        if now + 1e-9 < self._next_s:
            return
        self._next_s = now + self._pace_s
        plan = self.planner.plan(observe(twin))
        self.plans.append(plan)
        if self.planner.config.mode != "dry_run":
            carry_out(plan, twin.fleet)

    def to_json_lines(self) -> str:
        """Return the plans, a JSON object a line."""
        return "".join(json.dumps(asdict(plan)) + "\n" for plan in self.plans)


def planner_of(config: TwinConfig) -> Planner:
    """Return the planner that a description asks for: its promise and pools are the twin's."""
    limits = {name: pool.limits for name, pool in config.pools.items()}
    planner: PlannerConfig = replace(config.planner, slo=config.slo, pools=limits)
    return Planner(planner, pool_specs(config))


def pool_specs(config: TwinConfig) -> dict[str, PoolSpec]:
    return {
        name: PoolSpec(
            role=config.role(name),
            limits=pool.limits,
            worker_class=config.worker_class(name),
            model=_model(config, name),
        )
        for name, pool in config.pools.items()
    }


def observe(twin: Twin) -> Observation:
    """Return what happened since the last look, and how the fleet stands."""
    now, window = twin.time.now, twin.observe()
    return Observation(
        at=now,
        window_s=now - window.since_s,
        arrivals=window.arrivals,
        started=[Started(prompt, cached) for prompt, cached in window.started],
        finished=[_finished(each) for each in window.served],
        waiting=twin.dispatch.num_waiting,
        workers=list(_workers(twin.fleet, now)),
        pools={name: _pool(twin.fleet, name) for name in twin.fleet.pools},
    )


def carry_out(plan: Plan, fleet: Fleet) -> None:
    """Do what a plan wants and is not so yet. One that is held changes nothing."""
    if plan.held is not None:
        return
    for flip in plan.flips:
        if flip.worker in fleet.replicas:
            fleet.set_role(flip.worker, flip.role)
    for name in plan.release:
        if name in fleet.replicas:
            fleet.release(name)
    for pool, count in plan.replicas.items():
        fleet.set_replicas(pool, count)


def _model(config: TwinConfig, pool: str) -> EngineModel:
    flags = config.engine_flags(pool)
    assert flags.num_kv_blocks is not None, "a mock worker must be told"
    return EngineModel.of_profile(
        config.pools[pool].speed or Profile(),
        flags.num_kv_blocks * flags.block_size,
        flags.max_num_seqs,
        flags.max_num_batched_tokens,
        flags.block_size,
    )


def _finished(served: Served) -> Finished:
    return Finished(
        prompt_tokens=served.prompt_tokens,
        output_tokens=served.output_tokens,
        ttft_ms=served.ttft_s * 1e3,
        itl_ms=None if served.itl_s is None else served.itl_s * 1e3,
        wait_ms=served.wait_s * 1e3,
    )


def _workers(fleet: Fleet, now: float) -> Iterable[WorkerState]:
    for replica in fleet.replicas.values():
        if replica.worker is not None and replica.ready_s is not None:
            yield _worker(replica, replica.worker, now - replica.ready_s)


def _worker(replica: Replica, worker: Mocker, age_s: float) -> WorkerState:
    stats = worker.stats().scheduler
    return WorkerState(
        name=replica.name,
        pool=replica.pool,
        role=replica.role,
        draining=replica.state == "draining",
        age_s=age_s,
        running=stats.num_running,
        waiting=stats.num_waiting,
        queued_tokens=stats.num_queued_tokens,
        used_kv_tokens=stats.num_blocks_used * worker.pool.block_size,
        steps=_steps(worker),
    )


def _steps(worker: Mocker) -> Sequence[StepReport]:
    return [
        StepReport(
            wall_ms=seconds * 1e3,
            prefill_tokens=work.tokens,
            prefill_pairs=work.pairs,
            decode_sequences=work.decoding,
            decode_kv_tokens=work.kv_tokens,
        )
        for seconds, work in worker.take_steps()
    ]


def _pool(fleet: Fleet, name: str) -> PoolState:
    counts = fleet.counts(name)
    return PoolState(
        target=fleet.pools[name].target, ready=counts["ready"], starting=counts["starting"]
    )
