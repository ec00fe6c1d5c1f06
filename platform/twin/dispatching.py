"""What a dispatcher does, on the virtual clock: places requests, and goes on elsewhere.

The rules are those of `stafette.platform.serving`: the same router is asked with the same words,
hand-overs have the same parameters, and an answer goes on with its prompt and its tokens so far.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stafette.kvtransfer.connectors.p2p.messages import PARAMS, Give, Take
from stafette.kvtransfer.errors import KvTransferError
from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.config import MODEL, TwinConfig
from stafette.platform.twin.courses import Course, Leg, for_one_token
from stafette.platform.twin.fleet import Fleet
from stafette.platform.twin.moving import Mover
from stafette.platform.twin.tally import Tally
from stafette.router.errors import NoCandidate, UnknownReservation
from stafette.router.hashing import PromptHasher
from stafette.router.request import Request as Asking
from stafette.router.request import Source
from stafette.router.router import KvRouter, Placement
from stafette.workers.errors import RequestError
from stafette.workers.handover.exports import Exported
from stafette.workers.mocker.glide import Stretch
from stafette.workers.mocker.virtual import VirtualTime
from stafette.workers.request import OutputDelta
from stafette.workers.sampling.params import SamplingParams

_LOOK_AGAIN_S = 0.1

Params = dict[str, object]


@dataclass(slots=True)
class DispatchCounters:
    handed_over: int = 0  # prompts that another worker computed
    pulled: int = 0  # whose blocks came from a third
    lost: int = 0  # answers that went on elsewhere after a worker was lost


class Dispatch:
    def __init__(
        self,
        config: TwinConfig,
        time: VirtualTime,
        router: KvRouter,
        fleet: Fleet,
        hasher: PromptHasher,
        tally: Tally,
    ) -> None:
        self.counters = DispatchCounters()
        self.on_idle: Callable[[], None] = lambda: None  # nothing is under way
        self.legs: dict[str, Leg] = {}
        self._frontend_s = config.frontend_s
        self._limits = config.dispatch_config()
        self._time = time
        self._router = router
        self._fleet = fleet
        self._hasher = hasher
        self._tally = tally
        self._by_worker: dict[str, dict[Leg, None]] = {}
        self._waiting: deque[Course] = deque()  # for a worker
        self._looking = False
        self._num_asked = 0
        self._num_open = 0
        self._params: dict[int, SamplingParams] = {}
        self.mover = Mover(self, self._limits, time, fleet, config.block_size)
        fleet.on_deltas, fleet.on_stretch = self._heard, self._ran
        fleet.on_change, fleet.on_lost = self._look, self._lost
        fleet.on_drain = self.mover.on_drain
        fleet.legs_of = lambda name: len(self.legs_on(name))

    @property
    def num_open(self) -> int:
        """Return how many requests are planned or under way."""
        return self._num_open

    @property
    def num_waiting(self) -> int:
        """Return how many no worker has yet."""
        return len(self._waiting)

    def ask(self, arrival: Arrival) -> None:
        """Plan a request for the time at which it comes."""
        self._num_open += 1
        self._time.at(arrival.at_s, lambda: self._come(arrival))

    def legs_on(self, worker: str) -> list[Leg]:
        """Return those that need a worker to go on."""
        return [leg for leg in self._by_worker.get(worker, ()) if worker in leg.workers]

    # Placing

    def try_place(self, course: Course) -> Placement | None:
        """Return where an answer could go now, booked."""
        try:
            return self._router.place(self._asking(course))
        except NoCandidate:
            course.legs -= 1
            return None

    def free(self, name: str, num_tokens: int = 0) -> None:
        try:
            self._router.free(name, num_tokens)
        except UnknownReservation:
            pass  # its worker has taken the booking along

    def begin(self, course: Course, placement: Placement, before: Leg | None = None) -> None:
        """Send a request, or the rest of it, where it was placed."""
        leg = Leg(course, placement, self._time.now, before=before)
        self.legs[leg.name] = leg
        for worker in leg.workers:
            self._by_worker.setdefault(worker, {})[leg] = None
        self._tally.sent(course, placement, self._time.now)
        try:
            self._send(leg)
        except (RequestError, KvTransferError) as error:
            self.leave(leg)
            self._fail(course, str(error))
            return
        self.mover.enter(leg)

    def leave(self, leg: Leg, goes_on: bool = False) -> None:
        """A leg is over: its worker forgets it, wherever it goes on."""
        del self.legs[leg.name]
        for name in {leg.decode, leg.placement.prefill or leg.decode}:
            self._by_worker.get(name, {}).pop(leg, None)
        for worker, request in ((leg.decode, leg.name), (leg.placement.prefill, f"{leg.name}-p")):
            replica = self._fleet.replicas.get(worker or "")
            if replica is not None and replica.worker is not None:
                replica.worker.abort(request)
        self.free(leg.name, len(leg.course.tokens))
        self.mover.leave(leg, goes_on)

    def _come(self, arrival: Arrival) -> None:
        self._num_asked += 1
        prompt, now = arrival.make_prompt(), self._time.now
        params = self._params.get(arrival.output_tokens)
        if params is None:
            params = SamplingParams(max_tokens=arrival.output_tokens, ignore_eos=True)
            self._params[arrival.output_tokens] = params
        course = Course(f"r{self._num_asked}", arrival, prompt, now, params)
        self._tally.came(course)
        if self._frontend_s:
            self._time.at(now + self._frontend_s, lambda: self._place(course))
        else:
            self._place(course)

    def _place(self, course: Course) -> None:
        course.wait_until = self._time.now + self._limits.wait_s
        if self._waiting or not self._go(course):
            self._waiting.append(course)
            self._look_later()

    def _go(self, course: Course) -> bool:
        placement = self.try_place(course)
        if placement is None and course.begun and self._fleet.draining:
            worker = min(self._fleet.draining)
            placement = Placement(course.next_name(), worker, None, None, 0, 0.0)
        if placement is not None:
            self.begin(course, placement)
        return placement is not None

    def _look(self) -> None:
        """Place those that wait, first come, first served; some may have waited too long."""
        while self._waiting:
            course = self._waiting[0]
            if self._go(course):
                self._waiting.popleft()
            elif self._time.now >= course.wait_until:
                self._waiting.popleft()
                self._fail(course, "no worker could take it")
            else:
                break
        self._look_later()

    def _look_later(self) -> None:
        if self._waiting and not self._looking:
            self._looking = True
            self._time.at(self._time.now + _LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._looking = False
        self._look()

    def _asking(self, course: Course) -> Asking:
        prompt, session = course.prompt, course.arrival.session
        tokens: Any = [*prompt.token_ids, *course.tokens] if course.tokens else prompt.words
        limit = course.params.max_tokens
        assert limit is not None, "it was made with one"
        return Asking(
            request_id=course.next_name(),
            chain=self._hasher.chain(tokens, MODEL, session=session),
            prompt_tokens=len(tokens),
            # As clients' limits are taken: they tell something only when they are small.
            expected_output_tokens=limit if limit < self._router.expected_output_tokens else None,
            model=MODEL,
            session=session,
        )

    # Sending

    def _send(self, leg: Leg) -> None:
        """Let blocks be pulled, the prompt be computed, the answer begin, each where it should."""
        placement, name = leg.placement, leg.name
        request = leg.course.request_from_here(name)
        taken = self._pull(leg) if placement.source is not None else {}
        decode = self._fleet.replicas[placement.decode].worker
        if placement.prefill is None:
            if decode is not None:
                decode.generate(request, taken, leg.course.prompt.words)
            return
        self.counters.handed_over += 1
        if decode is not None:
            take = Take(name, (placement.prefill,)).params()
            decode.generate(request, take, leg.course.prompt.words)
        given = both(taken, Give(name, (placement.decode,)).params())
        computing = self._fleet.replicas[placement.prefill].worker
        if computing is not None:
            first = for_one_token(leg.course.request_from_here(f"{name}-p"))
            computing.prefill(first, given, lambda e: _note(leg, e), leg.course.prompt.words)

    def _pull(self, leg: Leg) -> Params:
        """Let whoever computes the prompt get blocks that a third worker holds."""
        source, placement = leg.placement.source, leg.placement
        assert source is not None, "it was asked for"
        self.counters.pulled += 1
        hand_off = f"{leg.name}-c"
        self.pass_on(leg, source, hand_off, placement.prefill or placement.decode)
        return Take(hand_off, (source.target,), source.first + source.blocks).params()

    def pass_on(self, leg: Leg, source: Source, hand_off: str, reader: str) -> None:
        """Have a worker pass on what it has cached of a prompt, and of its answer so far."""
        replica = self._fleet.replicas.get(source.target)
        if replica is None or replica.worker is None:
            return  # the reader hears of it when it looks for its peer
        request = for_one_token(leg.course.request_from_here(hand_off))
        replica.worker.offer(request, Give(hand_off, (reader,)).params(), leg.course.prompt.words)

    # What comes back

    def _heard(self, deltas: list[OutputDelta]) -> None:
        for delta in deltas:
            leg = self.legs.get(delta.request_id)
            if leg is None:
                continue  # the token of a prompt that is handed over
            if delta.token_ids:
                if leg.waits_for_first:
                    self._first(leg, delta.num_cached_tokens)
                leg.course.tokens += delta.token_ids
                self._router.progress(leg.name, len(leg.course.tokens))
                self._tally.grew(leg.course, self._time.now, len(delta.token_ids))
            if delta.finish_reason is not None:
                self._end(leg)

    def _ran(self, stretch: Stretch) -> None:
        """Several steps brought a token each to the same sequences."""
        courses = []
        for name, tokens in zip(stretch.request_ids, stretch.token_ids, strict=True):
            leg = self.legs.get(name)
            if leg is not None:
                leg.course.tokens += tokens
                self._router.progress(name, len(leg.course.tokens))
                courses.append(leg.course)
        self._tally.ran(courses, stretch)

    def _first(self, leg: Leg, cached: int) -> None:
        leg.waits_for_first = False
        course, now = leg.course, self._time.now
        if leg.placement.prefill is not None:
            cached = leg.computed_cached  # what was computed elsewhere for it is no hit
        self._router.first_token(leg.name, cached, (now - leg.began_s) * 1e3)
        if not course.begun:
            course.cached_tokens = cached
        self.mover.arrived(leg)

    def _end(self, leg: Leg) -> None:
        course = leg.course
        self.leave(leg)
        self._tally.done(course, self._time.now)
        follow = course.arrival.follow
        if follow is not None:
            for arrival in follow(self._time.now, course.prompt, course.tokens):
                self.ask(arrival)
        self._close()

    def _lost(self, worker: str) -> None:
        """Whatever needed a worker that is gone goes on elsewhere, from where it stands."""
        self.mover.on_lost(worker)
        for leg in self.legs_on(worker):
            self.counters.lost += 1
            self.leave(leg)
            course = leg.course
            course.losses += 1
            if course.losses >= self._limits.max_attempts:
                self._fail(course, f"{course.losses} workers were lost one after the other")
            else:
                self._place(course)
        self._by_worker.pop(worker, None)

    def _fail(self, course: Course, why: str) -> None:
        self._tally.failed(course, self._time.now, why)
        self._close()

    def _close(self) -> None:
        self._num_open -= 1
        if not self._num_open:
            self.on_idle()


def both(one: Params, other: Params) -> Params:
    """Return the parameters of a request that takes from one worker, and gives to another."""
    mine: Any = one.get(PARAMS, {})
    theirs: Any = other.get(PARAMS, {})
    return {**one, PARAMS: {**mine, **theirs}}


def _note(leg: Leg, exported: Exported) -> None:
    leg.computed_cached = exported.num_cached_tokens
