"""The router: takes a request, says where it goes and why, and keeps the books until it is done.

    router = KvRouter(Hashers(key, block_size=16))
    router.register(WorkerSpec(cache=CacheSpec(...)))
    placement = router.place(Request(request_id="r", chain=..., prompt_tokens=...))
    router.first_token("r"); router.progress("r", 10); router.free("r")

One thread uses it, the frontend's event loop; only the index is fed by another one.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stafette.router.affinity import Affinity, AffinityConfig
from stafette.router.cost import CostConfig, Terms, crowding
from stafette.router.errors import InvalidValue, NoCandidate, UnknownReservation
from stafette.router.explain import Decision, Decisions, ExplainConfig
from stafette.router.filters import FilterConfig
from stafette.router.fleet import Fleet
from stafette.router.hashing import Hashers
from stafette.router.index import IndexConfig, KvIndex
from stafette.router.lineup import Group, Lineup, Sources, roles, sources, utilizations
from stafette.router.load import LoadConfig, LoadReport, Stay
from stafette.router.performance import Performance, StepReport
from stafette.router.policy import PickConfig, pick
from stafette.router.registry import EVENTLESS, PolicyConfig, make_policy
from stafette.router.request import Option, Request, Role, Source, WorkerSpec
from stafette.router.reservations import Change, Computed, Freed, Reserved
from stafette.router.sharing import Sharing
from stafette.router.transfer_cost import TransferConfig

_OUTPUT_MEMORY = 100  # requests over which the length of answers is averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    policy: PolicyConfig = PolicyConfig()
    pick: PickConfig = PickConfig()
    cost: CostConfig = CostConfig()
    transfer: TransferConfig = TransferConfig()
    filters: FilterConfig = FilterConfig()
    affinity: AffinityConfig = AffinityConfig()
    load: LoadConfig = LoadConfig()
    index: IndexConfig = IndexConfig()
    explain: ExplainConfig = ExplainConfig()
    priors: Mapping[str, Performance] = field(default_factory=dict)  # by worker class
    expected_output_tokens: int = 256  # until answers tell
    predict: bool = True  # count blocks as cached from the decision on, until events tell

    def __post_init__(self) -> None:
        if self.expected_output_tokens < 1:
            value = self.expected_output_tokens
            raise InvalidValue("router.expected_output_tokens", value, "must be at least 1")


class Placement(NamedTuple):
    request_id: str
    decode: str
    prefill: str | None  # None: the decode target computes the prompt itself
    source: Source | None  # whose blocks are to be pulled first, by the one that computes
    cached_tokens: int  # predicted
    ttft_ms: float  # predicted


class KvRouter:
    def __init__(
        self,
        hashers: Hashers,
        config: RouterConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        sharing: Sharing | None = None,
    ) -> None:
        config = config or RouterConfig()
        self.config = config
        self.index = KvIndex(hashers, config.index, clock)
        self.decisions = Decisions(config.explain)
        self.affinity = Affinity(config.affinity)
        self.fleet = Fleet(hashers.block_size, config.load, config.filters, config.priors)
        self._policy = make_policy(config.policy)
        self.fleet.always_shared = self._policy.wants_shared_blocks
        self._clock = clock
        self.sharing = sharing or Sharing()
        self._output_tokens = float(config.expected_output_tokens)

    def register(self, spec: WorkerSpec) -> None:
        """Admit a target; one of the same name begins anew."""
        self.index.register(spec.cache)
        self.fleet.add(spec)

    def unregister(self, target: str) -> None:
        """The target is gone, with all that was placed there."""
        self.fleet.remove(target)
        self.index.unregister(target)
        self.affinity.forget_target(target)

    def set_state(self, target: str, healthy: bool = True, draining: bool = False) -> None:
        self.fleet.set_state(target, healthy, draining)

    def set_role(self, target: str, role: Role) -> None:
        """What is placed there stays."""
        self.fleet.set_role(target, role)

    def report_load(self, target: str, report: LoadReport) -> None:
        self.fleet[target].load.report(report)

    def report_steps(self, target: str, reports: Iterable[StepReport]) -> None:
        self.fleet.learn(target, reports)

    def preview(self, request: Request) -> Placement:
        """Return where the request would go now, and leave no trace."""
        return _placement(request, self._decide(request, self._clock()).chosen)

    def select(self, request: Request) -> Placement:
        """Return where the request should go, without booking it."""
        decision = self._decide(request, self._clock())
        self.decisions.add(decision)
        return _placement(request, decision.chosen)

    def place(self, request: Request) -> Placement:
        """Return where the request goes, and book it there until `free`."""
        if request.request_id in self.sharing.own:
            raise InvalidValue("request_id", request.request_id, "is placed already: free it first")
        now = self._clock()
        decision = self._decide(request, now)
        self.decisions.add(decision)
        return self._reserve(decision, now)

    def reserve(self, request_id: str) -> Placement:
        """Book what `select` returned for a request, as long as that is remembered."""
        decision = self.decisions.of(request_id)
        if decision is None:
            raise UnknownReservation(request_id)
        if request_id in self.sharing.own:
            raise InvalidValue("request_id", request_id, "is placed already: free it first")
        for target in filter(None, (decision.chosen.decode, decision.chosen.prefill)):
            self.fleet[target]  # UnknownTarget: it has left meanwhile
        return self._reserve(decision, self._clock())

    def first_token(
        self, request_id: str, cached_tokens: int | None = None, ttft_ms: float | None = None
    ) -> None:
        """The prompt is computed; the truth about it, where it is known, goes into `explain`."""
        self._book(Computed(self._reservation(request_id).request_id))
        self.decisions.settle(request_id, cached_tokens, ttft_ms)

    def progress(self, request_id: str, output_tokens: int) -> None:
        """So many tokens of the answer are there."""
        for target, _ in self._reservation(request_id).stays:
            member = self.fleet.members.get(target)
            if member is not None:
                member.load.progress(request_id, output_tokens)

    def free(self, request_id: str, output_tokens: int | None = None) -> None:
        """The request is over, or was never begun; UnknownReservation when told twice."""
        self._book(Freed(self._reservation(request_id).request_id))
        if output_tokens:
            step = (output_tokens - self._output_tokens) / _OUTPUT_MEMORY
            self._output_tokens += step

    def apply(self, router_id: str, change: Change) -> None:
        """Book what another router did."""
        self.sharing.apply(self.fleet, router_id, change, self._clock())
        if isinstance(change, Reserved):
            self._predict(change)

    def forget_router(self, router_id: str) -> None:
        """Another router is gone, and what it had placed is nobody's."""
        self.sharing.forget_router(self.fleet, router_id, self._clock())

    def close(self) -> None:
        """Give the index's memory back. Safe to call twice."""
        self.index.close()

    def explain(self, count: int = 10) -> list[Decision]:
        """Return the last decisions, the newest first."""
        return self.decisions.last(count)

    @property
    def expected_output_tokens(self) -> float:
        return self._output_tokens

    def _decide(self, request: Request, now: float) -> Decision:
        match = self.index.match(request.chain)
        able, left_out = self.fleet.candidates(request, match, now)
        able = self._bound(request, able, left_out, now)
        if not able:
            self.decisions.counters.rejected += 1
            raise NoCandidate(left_out)
        prefillers, decoders = roles(able)
        crowd = crowding(utilizations(prefillers or decoders), self.config.cost)
        most, givers = sources(able)
        terms = self._terms(request, crowd, givers)
        options = self._policy.options(request, prefillers, decoders, terms)
        return Decision(
            request=request,
            at=now,
            policy=self.config.policy.name,
            options=options,
            chosen=self._choose(request, options, now),
            candidates=able.named(options) if type(able) is Lineup else able,
            num_candidates=len(able),
            left_out=left_out,
            best_cached_tokens=min(most * terms.block_size, request.prompt_tokens - 1),
        )

    def _terms(
        self,
        request: Request,
        crowd: float,
        givers: Sources,
    ) -> Terms:
        expected = request.expected_output_tokens
        return Terms(
            block_size=self.fleet.block_size,
            expected_output_tokens=self._output_tokens if expected is None else expected,
            crowding=crowd,
            sources=givers if self.config.transfer.pull else (),
            cost=self.config.cost,
            transfer=self.config.transfer,
            prompts={},
        )

    def _bound(
        self,
        request: Request,
        able: Group,
        left_out: dict[str, str],
        now: float,
    ) -> Group:
        """With hard affinity a session stays where it is, as long as that target can be had."""
        if self.config.affinity.mode != "hard" or not request.session:
            return able
        bound = self.affinity.target_of(request.session, now)
        if bound is None or bound not in self.fleet.members:
            return able
        left_out |= {
            one.target: f"the session is bound to {bound}" for one in able if one.target != bound
        }
        # Those that compute prompts for others are no place for a session.
        return [one for one in able if one.target == bound or one.spec.role == "prefill"]

    def _choose(self, request: Request, options: Sequence[Option], now: float) -> Option:
        affinity = self.config.affinity
        if affinity.mode == "soft" and request.session:
            bound = self.affinity.target_of(request.session, now)
            dearest = options[0].cost + affinity.slack_ms
            for option in options:
                if option.decode == bound and option.cost <= dearest:
                    return option
        return pick(options, request.request_id, self.config.pick)

    def _reserve(self, decision: Decision, now: float) -> Placement:
        request, chosen = decision.request, decision.chosen
        uncached = request.prompt_tokens - chosen.cached_tokens
        terms = chosen.terms
        own_ms = [terms.get(name, 0.0) for name in ("load", "pull", "prefill")]
        computing = decision.candidate(chosen.computes)
        prefill_ms = sum(own_ms) or computing.performance.prefill_ms(uncached, chosen.cached_tokens)
        stay = Stay(request.prompt_tokens, uncached, prefill_ms, request.chain)
        stays = [(chosen.computes, stay)]
        if chosen.prefill is not None:
            waits = Stay(request.prompt_tokens, uncached, 0.0, request.chain, computes=False)
            stays.insert(0, (chosen.decode, waits))
        reserved = Reserved(request.request_id, tuple(stays))
        self._book(reserved)
        self._predict(reserved)
        if request.session:
            self.affinity.bind(request.session, chosen.decode, now)
        return _placement(request, chosen)

    def _predict(self, reserved: Reserved) -> None:
        """Its targets will hold its blocks soon."""
        if not self.config.predict or self.config.policy.name in EVENTLESS:
            return
        for target, stay in reserved.stays:
            if stay.chain and target in self.fleet.members:
                self.index.predict(target, stay.chain)

    def _book(self, change: Reserved | Computed | Freed) -> None:
        self.sharing.book(self.fleet, change, self._clock())

    def _reservation(self, request_id: str) -> Reserved:
        reserved = self.sharing.own.get(request_id)
        if reserved is None:
            raise UnknownReservation(request_id)
        return reserved


def _placement(request: Request, chosen: Option) -> Placement:
    return Placement(
        request.request_id,
        chosen.decode,
        chosen.prefill,
        chosen.source,
        chosen.cached_tokens,
        chosen.ttft_ms,
    )
