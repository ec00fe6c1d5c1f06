"""A fleet small enough for tests: prompts queue, answers share a worker, replicas take a while.

Time goes in tenths of a second. A worker's answers all advance alike, so that only the one that
ends next is looked at.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.observation import (
    Finished,
    Observation,
    PoolState,
    Started,
    WorkerState,
)
from stafette.platform.planner.plan import Plan

STEP_S = 0.1
CHUNK_MS = 130.0


@dataclass
class Job:
    at: float
    prompt: int
    output: int
    first: float = 0.0
    end: float = 0.0

    @property
    def ttft_ms(self):
        return (self.first - self.at) * 1e3

    @property
    def itl_ms(self):
        return (self.end - self.first) * 1e3 / max(1, self.output - 1)


@dataclass
class Worker:
    name: str
    pool: str
    role: str
    ready_at: float
    draining: bool = False
    prompts: deque = field(default_factory=deque)  # [ms left, job]
    answers: list = field(default_factory=list)  # (ends at this many tokens, order, job)
    tokens: float = 0.0  # that each of its answers has got since it began
    context: float = 0.0  # of all answers

    @property
    def queued_ms(self):
        return sum(left for left, _ in self.prompts)

    @property
    def empty(self):
        return not self.prompts and not self.answers


class SmallFleet:
    def __init__(self, model: EngineModel, pools, startup_s=60.0, max_ready=None):
        self.model = model
        self.startup_s = startup_s
        self.max_ready = max_ready or {}
        self.now = 0.0
        self.roles = {pool: role for pool, (role, _) in pools.items()}
        self.targets = {pool: count for pool, (_, count) in pools.items()}
        self.workers: list[Worker] = []
        self.done: list[Job] = []
        self.gpu_s = 0.0
        self.changes: list[tuple[float, dict]] = []
        self.flips: list[float] = []
        self._made = 0
        self._order = 0
        self._waiting: list[Job] = []
        self._started: list[Job] = []
        self._finished: list[Job] = []
        for pool, count in self.targets.items():
            for _ in range(count):
                self._make(pool, 0.0)

    def run(self, jobs: Iterable[Job], until: float, plan: Callable[[Observation], Plan] | None):
        jobs = deque(jobs)
        steps = 0
        while self.now < until - 1e-9:
            while jobs and jobs[0].at <= self.now:
                self._waiting.append(jobs.popleft())
                self._started.append(self._waiting[-1])
            self._waiting = [job for job in self._waiting if not self._place(job)]
            self.now = round(self.now + STEP_S, 3)
            for worker in self.workers:
                if worker.ready_at <= self.now:
                    self._advance(worker)
            self.workers = [w for w in self.workers if not (w.draining and w.empty)]
            self.gpu_s += len(self.workers) * STEP_S
            steps += 1
            if plan is not None and steps % 10 == 0:
                self.apply(plan(self.observe()))

    def observe(self):
        started, self._started = self._started, []
        finished, self._finished = self._finished, []
        return Observation(
            at=self.now,
            window_s=1.0,
            arrivals=len(started),
            started=[Started(j.prompt) for j in started],
            finished=[Finished(j.prompt, j.output, j.ttft_ms, j.itl_ms) for j in finished],
            waiting=len(self._waiting),
            workers=[self._state(w) for w in self.workers if w.ready_at <= self.now],
            pools={pool: self._pool(pool) for pool in self.targets},
        )

    def apply(self, plan: Plan):
        for flip in plan.flips:
            worker = next(w for w in self.workers if w.name == flip.worker)
            worker.role = flip.role
            self.flips.append(self.now)
        before = dict(self.targets)
        self.targets.update(plan.replicas)
        if self.targets != before:
            self.changes.append((self.now, dict(self.targets)))
        for worker in self.workers:
            worker.draining = worker.name in plan.release
        for pool, target in self.targets.items():
            there = [w for w in self.workers if w.pool == pool and not w.draining]
            for _ in range(target - len(there)):
                self._make(pool, self.now + self.startup_s)
            starting = [w for w in there if w.ready_at > self.now]
            for worker in starting[: max(0, len(there) - target)]:
                self.workers.remove(worker)

    def attainment(self, ttft_ms, itl_ms, since=0.0, until=float("inf")):
        judged = [j for j in self.done if since <= j.at < until]
        kept = sum(j.ttft_ms <= ttft_ms and j.itl_ms <= itl_ms for j in judged)
        return kept / max(1, len(judged))

    def _make(self, pool, ready_at):
        self._made += 1
        cap = self.max_ready.get(pool)
        if cap is not None and sum(w.pool == pool for w in self.workers) >= cap:
            ready_at = float("inf")
        self.workers.append(Worker(f"w{self._made}", pool, self.roles[pool], ready_at))

    def _serving(self, *roles):
        return [
            w for w in self.workers if w.role in roles and not w.draining and w.ready_at <= self.now
        ]

    def _place(self, job):
        """Send a prompt to whoever has the least before it, if somebody can answer it."""
        if not self._serving("decode", "both"):
            return False
        able = self._serving("prefill", "both") or self._serving("decode")
        worker = min(able, key=lambda w: (w.queued_ms, w.name))
        worker.prompts.append([self.model.performance.prefill_ms(job.prompt), job])
        return True

    def _advance(self, worker):
        left = STEP_S * 1e3
        while worker.prompts and left > 0:
            taken = min(left, worker.prompts[0][0])
            worker.prompts[0][0] -= taken
            left -= taken
            if worker.prompts[0][0] <= 1e-9:
                job = worker.prompts.popleft()[1]
                self._decode(job, self.now - left / 1e3)
        self._emit(worker, left, STEP_S * 1e3 - left)

    def _decode(self, job, at):
        able = self._serving("decode", "both") or [w for w in self.workers if w.ready_at <= at]
        worker = min(able, key=lambda w: (len(w.answers), w.queued_ms, w.name))
        job.first = at + (self.model.transfer_ms(min(job.prompt, 8192)) + 10.0) / 1e3
        self._order += 1
        ends = worker.tokens + job.output - 1
        heapq.heappush(worker.answers, (ends, self._order, job))
        worker.context += job.prompt + job.output / 2

    def _emit(self, worker, free_ms, taken_ms):
        if not worker.answers:
            return
        p = self.model.performance
        itl = p.step_ms + len(worker.answers) * p.decode_ms_per_seq
        itl += worker.context * p.decode_ms_per_kv_token
        worker.tokens += free_ms / itl + taken_ms / (CHUNK_MS + itl)
        while worker.answers and worker.answers[0][0] <= worker.tokens:
            job = heapq.heappop(worker.answers)[2]
            worker.context -= job.prompt + job.output / 2
            job.end = max(self.now, job.first)
            self.done.append(job)
            self._finished.append(job)

    def _state(self, worker):
        return WorkerState(
            name=worker.name,
            pool=worker.pool,
            role=worker.role,
            draining=worker.draining,
            age_s=self.now - worker.ready_at,
            running=len(worker.answers),
            waiting=max(0, len(worker.prompts) - 1),
            queued_tokens=sum(
                int(job.prompt * left / self.model.performance.prefill_ms(job.prompt))
                for left, job in worker.prompts
            ),
            used_kv_tokens=int(worker.context),
        )

    def _pool(self, pool):
        there = [w for w in self.workers if w.pool == pool and not w.draining]
        ready = sum(w.ready_at <= self.now for w in there)
        return PoolState(target=self.targets[pool], ready=ready, starting=len(there) - ready)
