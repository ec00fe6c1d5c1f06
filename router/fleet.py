"""The registered targets, each with its load, and what their classes have taught of their speed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.router.board import Board
from stafette.router.errors import UnknownTarget
from stafette.router.filters import FilterConfig, reason_against
from stafette.router.index import NOTHING, Match, Overlap
from stafette.router.lineup import Group, Holdings, Lineup, least_queue_ms
from stafette.router.load import Load, LoadConfig, LoadView
from stafette.router.member import Member
from stafette.router.performance import Learner, Performance, StepReport
from stafette.router.request import Candidate, Request, Role, WorkerSpec

# From so many targets on the board is the faster way; sooner where each pair of them has a price.
MANY, MANY_IN_PAIRS = 112, 32


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
    many: int | None = None  # from so many on they are not looked at one by one; None: as above
    _board: Board | None = None  # None: it is to be made anew
    _changed: set[Load] = field(default_factory=set)

    def __getitem__(self, target: str) -> Member:
        member = self.members.get(target)
        if member is None:
            raise UnknownTarget(target)
        return member

    def add(self, spec: WorkerSpec) -> None:
        """Admit a target; one of the same name begins anew."""
        if spec.target in self.members:
            self.remove(spec.target)
        number = len(self.members)
        load = Load(self.block_size, self.load_config, self._changed, number)
        self.members[spec.target] = Member(spec, load, self.learner(spec.worker_class))
        self._board = None

    def remove(self, target: str) -> Member:
        member = self[target]
        del self.members[target]
        self._changed.discard(member.load)
        self._board = None
        return member

    def set_state(self, target: str, healthy: bool, draining: bool) -> None:
        member = self[target]
        member.healthy, member.draining = healthy, draining
        self._board = None

    def set_role(self, target: str, role: Role) -> None:
        member = self[target]
        if member.spec.role != role:
            member.spec = replace(member.spec, role=role)
            self._board = None

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
        self, request: Request, match: Match | None, now: float
    ) -> tuple[Group, dict[str, str]]:
        """Return who can take the request, and why the others cannot."""
        if self._is_large():
            return self._lineup(request, match, now)
        able, left_out = [], {}
        filters, overlaps = self.filter_config, match.overlaps() if match else {}
        for target, member in self.members.items():
            load = member.load.view(now, member.learner.performance.prefill_ms_per_token)
            reason = member.away or reason_against(request, member.spec, load, filters)
            if reason is not None:
                left_out[target] = reason
            else:
                overlap = overlaps.get(target, NOTHING)
                able.append(self._candidate(request, member, overlap, load))
        return able, left_out

    def _is_large(self) -> bool:
        count = len(self.members)
        if self.many is not None or not MANY_IN_PAIRS <= count < MANY:
            return count >= (MANY if self.many is None else self.many)
        return any(member.spec.role == "prefill" for member in self.members.values())

    def _lineup(
        self, request: Request, match: Match | None, now: float
    ) -> tuple[Group, dict[str, str]]:
        board = self._board = self._board or Board(self.members.values(), self._changed)
        board.look(now)
        holdings = Holdings(board, match)

        def make(row: int) -> Candidate:
            return self._candidate(request, board.members[row], holdings.at(row), board.views[row])

        able, left_out = board.able(request, self.filter_config), {}
        for row in np.flatnonzero(~able).tolist():
            member, load = board.members[row], board.views[row]
            reason = member.away or reason_against(request, member.spec, load, self.filter_config)
            left_out[member.spec.target] = reason or ""
        return Lineup(board, np.flatnonzero(able), holdings, make), left_out

    def _candidate(
        self, request: Request, member: Member, overlap: Overlap, load: LoadView
    ) -> Candidate:
        spec, performance, last = member.spec, member.learner.performance, member.last
        # What is shared matters where blocks may run out: to look for it takes time.
        room = spec.total_blocks - load.used_blocks
        if self.always_shared or (
            spec.total_blocks and room < 2 * len(request.chain) // HASH_BYTES
        ):
            shared = member.load.shared(request.chain)
            return Candidate(spec, overlap, load, performance, shared)
        if last and last[0] is spec and last[2] is load and last[3] is performance:
            if last[1] == overlap:
                return last
        member.last = Candidate(spec, overlap, load, performance)
        return member.last

    def least_queue_ms(self, request: Request, now: float) -> float:
        """Return the shortest queue that the request could join; 0 when it can join none."""
        able, _ = self.candidates(request, None, now)
        return least_queue_ms(able)
