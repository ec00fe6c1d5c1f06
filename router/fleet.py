"""The registered targets, each with its load, and what their classes have taught of their speed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.router.errors import UnknownTarget
from stafette.router.filters import FilterConfig, reason_against
from stafette.router.index import NOTHING, Overlap
from stafette.router.load import Load, LoadConfig, LoadView
from stafette.router.performance import Learner, Performance, StepReport
from stafette.router.request import Candidate, Request, WorkerSpec


@dataclass(slots=True)
class Member:
    spec: WorkerSpec
    load: Load
    learner: Learner
    healthy: bool = True
    draining: bool = False
    last: Candidate | None = None  # as it was the last time: most stay as they are

    @property
    def away(self) -> str | None:
        """Why it takes no requests now, whatever they are."""
        if not self.healthy:
            return "is not healthy"
        return "is draining" if self.draining else None


@dataclass(slots=True)
class Fleet:
    """Not thread-safe."""

    block_size: int
    load_config: LoadConfig
    filter_config: FilterConfig
    priors: Mapping[str, Performance]  # by worker class
    always_shared: bool = False  # candidates tell what they share with the request
    members: dict[str, Member] = field(default_factory=dict)
    learners: dict[str, Learner] = field(default_factory=dict)

    def __getitem__(self, target: str) -> Member:
        member = self.members.get(target)
        if member is None:
            raise UnknownTarget(target)
        return member

    def add(self, spec: WorkerSpec) -> None:
        """Admit a target; one of the same name begins anew."""
        load = Load(self.block_size, self.load_config)
        self.members[spec.target] = Member(spec, load, self.learner(spec.worker_class))

    def remove(self, target: str) -> Member:
        member = self[target]
        del self.members[target]
        return member

    def learner(self, worker_class: str) -> Learner:
        known = self.learners.get(worker_class)
        if known is None:
            prior = self.priors.get(worker_class, Performance())
            known = self.learners[worker_class] = Learner(prior)
        return known

    def learn(self, target: str, reports: Iterable[StepReport]) -> None:
        learner = self[target].learner
        for report in reports:
            learner.learn(report)

    def candidates(
        self, request: Request, overlaps: Mapping[str, Overlap], now: float
    ) -> tuple[list[Candidate], dict[str, str]]:
        """Return who can take the request, and why the others cannot."""
        able, left_out = [], {}
        for target, member in self.members.items():
            performance = member.learner.performance
            load = member.load.view(now, performance.prefill_ms_per_token)
            reason = member.away or reason_against(request, member.spec, load, self.filter_config)
            if reason is not None:
                left_out[target] = reason
            else:
                overlap = overlaps.get(target, NOTHING)
                able.append(self._candidate(request, member, overlap, load))
        return able, left_out

    def _candidate(
        self, request: Request, member: Member, overlap: Overlap, load: LoadView
    ) -> Candidate:
        spec, performance, last = member.spec, member.learner.performance, member.last
        # What is shared matters where blocks may run out: to look for it takes time.
        needed = load.used_blocks + 2 * (len(request.chain) // HASH_BYTES)
        if self.always_shared or 0 < spec.total_blocks < needed:
            shared = member.load.shared(request.chain)
            return Candidate(spec, overlap, load, performance, shared)
        if last and last[0] is spec and last[2] is load and last[3] is performance:
            if last[1] == overlap:
                return last
        member.last = Candidate(spec, overlap, load, performance)
        return member.last

    def least_queue_ms(self, request: Request, now: float) -> float:
        """Return the shortest queue that the request could join; 0 when it can join none."""
        able, _ = self.candidates(request, {}, now)
        able = [one for one in able if one.spec.role != "decode"] or able
        return min((one.load.queue_ms for one in able), default=0.0)
