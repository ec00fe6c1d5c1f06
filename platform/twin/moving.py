"""Takes answers off workers that drain, together with their KV, while they go on.

The rules are those of `stafette.platform.serving.mover`: the new worker is made ready first, and
the old stream is cut only then; what cannot go elsewhere stays where it is.
"""

from collections import deque
from typing import TYPE_CHECKING

from stafette.kvtransfer.connectors.p2p.messages import Take
from stafette.kvtransfer.errors import KvTransferError
from stafette.platform.serving.config import DispatchConfig
from stafette.platform.twin.courses import Leg, Move, for_one_token
from stafette.platform.twin.fleet import Fleet
from stafette.router.request import Source
from stafette.router.router import Placement
from stafette.workers.errors import RequestError
from stafette.workers.mocker.virtual import VirtualTime

if TYPE_CHECKING:
    from stafette.platform.twin.dispatching import Dispatch

_COMPUTED_BLOCKS = 4  # so few are computed sooner than fetched


class Mover:
    """A leg is watched from `enter` to `leave`."""

    def __init__(
        self,
        dispatch: "Dispatch",
        limits: DispatchConfig,
        time: VirtualTime,
        fleet: Fleet,
        block_size: int,
    ) -> None:
        self.num_moved = 0
        self.num_failed = 0
        self._dispatch = dispatch
        self._limits = limits
        self._time = time
        self._fleet = fleet
        self._block_size = block_size
        self._turns: dict[str, int] = {}  # taken, by the worker that drains
        self._queues: dict[str, deque[Move]] = {}

    def enter(self, leg: Leg) -> None:
        if not set(self._fleet.draining).isdisjoint(leg.workers):
            self._begin(leg)

    def leave(self, leg: Leg, goes_on: bool) -> None:
        """The leg is over. A move that has cut it keeps its turn until the next leg has begun."""
        self.arrived(leg)
        move = leg.move
        if move is not None and not goes_on:
            self._forget(move)

    def arrived(self, leg: Leg) -> None:
        """It has begun, or ended: either way its move is over."""
        before, leg.before = leg.before, None
        if before is not None and before.move is not None:
            self._end_turn(before.move)

    def on_drain(self, worker: str) -> None:
        """Take off it what needs it."""
        for leg in self._dispatch.legs_on(worker):
            if leg.move is None:
                self._begin(leg)

    def on_lost(self, worker: str) -> None:
        """A worker that was being made ready is gone."""
        for leg in list(self._dispatch.legs.values()):
            move = leg.move
            if move is not None and move.onward is not None and move.onward.decode == worker:
                if not move.cut:
                    self._failed(move)

    def _begin(self, leg: Leg) -> None:
        leg.move = Move(leg, leg.decode)
        self._queues.setdefault(leg.decode, deque()).append(leg.move)
        self._next(leg.decode)

    def _next(self, worker: str) -> None:
        queue = self._queues[worker]
        while queue and self._turns.get(worker, 0) < self._limits.moves_at_a_time:
            move = queue.popleft()
            if not move.ended:
                self._turns[worker] = self._turns.get(worker, 0) + 1
                move.has_turn = True
                self._try(move)

    def _try(self, move: Move) -> None:
        leg, course = move.leg, move.leg.course
        if set(self._fleet.draining).isdisjoint(leg.workers):
            leg.move = None  # nobody whom it needs leaves any more
            self._forget(move)
            return
        placement = self._dispatch.try_place(course)
        if placement is None:
            self._again(move)
            return
        move.onward = placement
        if course.begun:
            self._make_ready(move, placement)
        else:
            if placement.source is None:
                move.onward = placement._replace(source=self._begun_source(leg, placement))
            self._cut(move)

    def _begun_source(self, leg: Leg, placement: Placement) -> Source | None:
        """Whoever was computing the prompt may have chunks of it."""
        computed, computes = leg.workers[-1], placement.prefill or placement.decode
        if computed == computes:
            return None
        return Source(computed, 0, len(leg.course.prompt) // self._block_size)

    def _make_ready(self, move: Move, placement: Placement) -> None:
        """Bring the KV so far to the new worker; what does not come, it computes."""
        leg, course = move.leg, move.leg.course
        replica = self._fleet.replicas[placement.decode]
        if replica.worker is None:
            self._failed(move)
            return
        hand_off = f"{placement.request_id}-r"
        request = for_one_token(course.request_from_here(hand_off))
        num_blocks = (len(request.token_ids) - 1) // self._block_size
        source = Source(leg.decode, 0, num_blocks)
        self._dispatch.pass_on(leg, source, f"{hand_off}-c", placement.decode)
        take = Take(f"{hand_off}-c", (leg.decode,), num_blocks).params()
        try:
            replica.worker.prefill(
                request, take, lambda _: self._ready(move, placement, num_blocks), None
            )
        except (RequestError, KvTransferError):
            self._failed(move)

    def _ready(self, move: Move, placement: Placement, num_blocks: int) -> None:
        if move.ended or move.onward is not placement:
            return
        missing = self._so_far(move.leg) // self._block_size - num_blocks
        source = Source(move.leg.decode, 0, num_blocks + missing)
        rest = source if missing > _COMPUTED_BLOCKS else None
        move.onward = placement._replace(prefill=None, source=rest)
        # Not from inside the new worker's step: it is to get the rest of the answer.
        self._time.at(self._time.now, lambda: self._cut(move))

    def _so_far(self, leg: Leg) -> int:
        return len(leg.course.prompt) + len(leg.course.tokens)

    def _cut(self, move: Move) -> None:
        if move.ended or move.onward is None:
            return
        leg, onward = move.leg, move.onward
        if self._fleet.replicas.get(onward.decode) is None:
            self._failed(move)
            return
        self._settle(leg.decode)
        if move.ended:
            return  # its last token has come meanwhile
        move.cut = True
        self.num_moved += 1
        self._time.at(self._time.now + self._limits.move_timeout_s, lambda: self._end_turn(move))
        self._dispatch.leave(leg, goes_on=True)
        self._dispatch.begin(leg.course, onward, before=leg)

    def _settle(self, worker: str) -> None:
        """Let all that the old worker has done by now be told before it is cut."""
        replica = self._fleet.replicas.get(worker)
        if replica is not None and replica.worker is not None:
            replica.worker.settle()

    def _failed(self, move: Move) -> None:
        self.num_failed += 1
        self._drop_onward(move)
        self._again(move)

    def _again(self, move: Move) -> None:
        """Leave the turn to others, and take another one a little later."""
        self._end_turn(move)

        def queue() -> None:
            if not move.ended:
                self._queues[move.turn].append(move)
                self._next(move.turn)

        self._time.at(self._time.now + self._limits.move_again_s, queue)

    def _forget(self, move: Move) -> None:
        """The leg ended by itself, or needs not go."""
        move.ended = True
        self._drop_onward(move)
        self._end_turn(move)

    def _drop_onward(self, move: Move) -> None:
        onward, move.onward = move.onward, None
        if onward is None or move.cut:
            return
        self._dispatch.free(onward.request_id)
        replica = self._fleet.replicas.get(onward.decode)
        if replica is not None and replica.worker is not None:
            replica.worker.abort(f"{onward.request_id}-r")

    def _end_turn(self, move: Move) -> None:
        if move.has_turn:
            move.has_turn = False
            self._turns[move.turn] -= 1
            self._next(move.turn)
