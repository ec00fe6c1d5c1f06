"""The workers of the service: registered, followed, and not asked when they are silent."""

from collections.abc import Callable
from dataclasses import dataclass, field

from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.router.errors import UnknownTarget
from stafette.router.load import LoadReport
from stafette.router.performance import StepReport
from stafette.router.router import KvRouter
from stafette.router.service import messages
from stafette.router.service.leases import Leases
from stafette.router.service.pushed import Life

_LOOK_S = 0.25  # how often the event streams are looked at


@dataclass(slots=True)
class _Worker:
    life: Life
    heartbeats: bool = False  # its silence tells that it is gone
    heard: tuple[int, int] = (0, 0)  # batches delivered and times lost, when it was looked at
    ttl_s: float | None = None
    away: set[str] = field(default_factory=set)  # why it is taken for dead: lease, stream, told


class Workers:
    """Used by the event loop's thread alone."""

    def __init__(
        self, router: KvRouter, events: EventSubscriber, clock: Callable[[], float]
    ) -> None:
        self.leases = Leases()
        self._router = router
        self._events = events
        self._clock = clock
        self._known: dict[str, _Worker] = {}
        self._look_at = float("-inf")

    def register(self, asked: messages.Register) -> dict[str, object]:
        known = self._known.get(asked.worker)
        if known is not None:
            known.life.check_epoch(asked.epoch)
        self._router.register(asked.spec())
        self._known[asked.worker] = _Worker(Life(epoch=asked.epoch), ttl_s=asked.ttl_s)
        self.leases.release(asked.worker)
        if asked.ttl_s is not None:
            self.leases.hold(asked.worker, asked.worker, asked.ttl_s, self._clock())
        self._follow(asked)
        return {"worker": asked.worker, "workers": len(self._known)}

    def unregister(self, asked: messages.Unregister) -> dict[str, object]:
        held = self._router.index.held(self._of(asked.worker))
        self._events.remove_worker(asked.worker)
        self._router.unregister(asked.worker)
        self.leases.release(asked.worker)
        del self._known[asked.worker]
        return {"worker": asked.worker, "forgotten_blocks": held}

    def set_state(self, asked: messages.SetState) -> dict[str, object]:
        name = self._of(asked.worker)
        if asked.role is not None:
            self._router.set_role(name, asked.role)
        self._router.set_state(name, draining=asked.draining)
        self._mark(name, "it was told", not asked.healthy)
        return {"worker": name}

    def report_load(self, asked: messages.ReportLoad) -> dict[str, object]:
        now = self._clock()
        life = self._known[self._of(asked.worker)].life
        life.check_epoch(asked.epoch)
        life.check_load(asked.at)
        self._renew(asked.worker, now)
        numbers = (asked.queued_tokens, asked.running, asked.used_blocks)
        self._router.report_load(asked.worker, LoadReport(now - asked.age_s, *numbers))
        return {"worker": asked.worker}

    def report_steps(self, asked: messages.ReportSteps) -> dict[str, object]:
        name = self._of(asked.worker)
        learner = self._router.fleet[name].learner
        rejected = learner.rejected
        steps = [
            StepReport(
                step.wall_ms,
                step.prefill_tokens,
                step.prefill_pairs,
                step.decode_sequences,
                step.decode_kv_tokens,
            )
            for step in asked.steps
        ]
        self._router.report_steps(name, steps)
        self._renew(name, self._clock())
        return {"worker": name, "rejected": learner.rejected - rejected}

    def push_events(self, asked: messages.PushEvents) -> dict[str, object]:
        life = self._known[self._of(asked.worker)].life
        batch = life.take(asked)
        if batch is not None:
            self._router.index.on_batch(batch)
        self._renew(asked.worker, self._clock())
        return {"worker": asked.worker, "seq": life.seq, "applied": batch is not None}

    def tick(self, now: float) -> None:
        for name in self.leases.expire(now):
            self._mark(name, "its lease is over", True)
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._look()

    def describe(self) -> list[dict[str, object]]:
        """Return every worker with its state, as plain values."""
        now = self._clock()
        shown = []
        for name, member in self._router.fleet.members.items():
            worker = self._known[name]
            spec, performance = member.spec, member.learner.performance
            load = member.load.view(now, performance.prefill_ms_per_token)
            shown.append(
                {
                    "worker": name,
                    "model": spec.cache.model,
                    "role": spec.role,
                    "class": spec.worker_class,
                    "epoch": worker.life.epoch,
                    "healthy": member.healthy,
                    "why": sorted(worker.away),
                    "draining": member.draining,
                    "cached_blocks": self._router.index.held(name),
                    "total_blocks": spec.total_blocks,
                    "load": load._asdict(),
                    "step_reports": member.learner.reports,
                }
            )
        return shown

    def _follow(self, asked: messages.Register) -> None:
        """Its old stream, if there was one, is followed no more."""
        source = asked.events
        if source is None:
            self._events.remove_worker(asked.worker)
            return
        self._events.add_worker(asked.worker, source.address, source.replay_address, source.dialect)
        self._known[asked.worker].heartbeats = source.dialect == "stafette"

    def _look(self) -> None:
        """Who promised heartbeats and is silent takes no requests until it is heard again.

        A stock worker promises none, and would not be heard before it had requests.
        """
        for name, worker in self._known.items():
            if not worker.heartbeats:
                continue
            counters = self._events.counters(name)
            delivered, lost = worker.heard
            worker.heard = (counters.delivered, counters.lost)
            if counters.delivered > delivered:
                self._mark(name, "its events are silent", False)
            elif counters.lost > lost:
                self._mark(name, "its events are silent", True)

    def _renew(self, name: str, now: float) -> None:
        worker = self._known[name]
        if worker.ttl_s is not None:
            self.leases.hold(name, name, worker.ttl_s, now)
            self._mark(name, "its lease is over", False)

    def _mark(self, name: str, why: str, away: bool) -> None:
        reasons = self._known[name].away
        if away:
            reasons.add(why)
        else:
            reasons.discard(why)
        member = self._router.fleet[name]
        self._router.set_state(name, healthy=not reasons, draining=member.draining)

    def _of(self, name: str) -> str:
        if name not in self._known:
            raise UnknownTarget(name)
        return name
