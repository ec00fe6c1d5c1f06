"""Takes answers off workers that drain, together with their KV, while they go on.

The new worker is made ready first: it pulls the KV of prompt and answer so far from the old one,
and computes what cannot be had. Only then the old stream is cut, behind the last token that has
come; the new worker computes the few tokens since then, or fetches their KV if they are many, and
goes on with the next one. Nothing depends on two workers making the same tokens, so none is lost,
repeated or changed.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import whole
from stafette.platform.serving.config import DispatchConfig
from stafette.platform.serving.course import Leg
from stafette.platform.serving.fleet import WorkerFleet
from stafette.platform.serving.passing import FAILURES, HandOff, Params, for_one_token
from stafette.platform.serving.placer import Placer
from stafette.router.request import Source
from stafette.router.router import Placement
from stafette.workers.request import Request
from stafette.workers.service.frames import Order

_log = logging.getLogger(__name__)

# So few are computed sooner than fetched, for which steps on their way have to end on both sides.
_COMPUTED_BLOCKS = 4
_TOKENS_END = 1 << 31


@dataclass(slots=True)
class MoveCounters:
    moved: int = 0  # answers that were cut, and went on elsewhere
    failed: int = 0  # moves that came to nothing: the answer stayed, for another try


class Mover:
    """A leg is watched from `enter` to `leave`."""

    def __init__(self, config: DispatchConfig, fleet: WorkerFleet, placer: Placer) -> None:
        self.counters = MoveCounters()
        self._config = config
        self._fleet = fleet
        self._placer = placer
        self._legs: dict[Leg, asyncio.Task[None] | None] = {}  # with the move under way
        self._turns: dict[str, asyncio.Semaphore] = {}  # by the worker that drains
        self._moves: set[asyncio.Task[None]] = set()
        fleet.on_drain = self.on_drain

    def enter(self, leg: Leg) -> None:
        self._legs[leg] = None
        if not self._fleet.draining.isdisjoint(leg.workers):
            self._begin(leg)

    def leave(self, leg: Leg) -> None:
        """The leg is over. A move that has cut it keeps its turn until the next leg has begun."""
        move = self._legs.pop(leg)
        if move is not None and leg.onward is None:
            move.cancel()

    def on_drain(self, worker: str) -> None:
        """Take off it what needs it."""
        for leg, move in list(self._legs.items()):
            if move is None and worker in leg.workers:
                self._begin(leg)

    def _begin(self, leg: Leg) -> None:
        self._legs[leg] = move = asyncio.create_task(self._move(leg))
        self._moves.add(move)
        move.add_done_callback(self._moves.discard)

    async def _move(self, leg: Leg) -> None:
        """Try until it is done; as long as nobody else can take it, the old worker goes on."""
        turn = self._turns.setdefault(leg.decode, asyncio.Semaphore(self._config.moves_at_a_time))
        while True:
            async with turn:
                if self._fleet.draining.isdisjoint(leg.workers):
                    self._legs[leg] = None  # the worker has changed its mind
                    return
                if await self._try(leg):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._config.move_timeout_s):
                            await leg.onward_began.wait()
                    return
            await asyncio.sleep(self._config.move_again_s)

    async def _try(self, leg: Leg) -> bool:
        course = leg.course
        placement = self._placer.try_place(course, course.next_name())
        if placement is None:
            return False
        try:
            if course.begun:
                placement = await self._make_ready(leg, placement)
            elif placement.source is None:
                placement = placement._replace(source=self._begun_source(leg, placement))
        except (*FAILURES, MalformedMessage) as error:
            _log.info("%s stays on %s: %s", placement.request_id, leg.decode, error)
            self._placer.free(placement.request_id)
            self.counters.failed += 1
            return False
        except asyncio.CancelledError:
            self._placer.free(placement.request_id)
            raise
        leg.onward = placement
        self.counters.moved += 1
        leg.attempt.cut()
        return True

    def _begun_source(self, leg: Leg, placement: Placement) -> Source | None:
        """Whoever was computing the prompt may have chunks of it."""
        computed, request = leg.workers[-1], leg.course.request
        computes = placement.prefill or placement.decode
        if computed == computes or request.params.scores_prompt:
            return None
        return Source(computed, 0, len(request.prompt_token_ids) // self._block_size(leg))

    async def _make_ready(self, leg: Leg, placement: Placement) -> Placement:
        """Bring the KV so far to the new worker; return how the rest gets there."""
        course, size, new = leg.course, self._block_size(leg), placement.decode
        request = course.request_from_here(f"{placement.request_id}-r")
        num_blocks = (len(request.token_ids) - 1) // size
        hand_off = HandOff(self._fleet, leg.decode, new)
        await hand_off.introduce()
        passing = asyncio.create_task(hand_off.pass_on(request, self._config.move_timeout_s))
        try:
            await self._get(new, request, hand_off.take(num_blocks), num_blocks * size)
        finally:
            passing.cancel()
            await asyncio.gather(passing, return_exceptions=True)
        now = len(course.request.prompt_token_ids) + len(course.text.token_ids)
        missing = now // size - num_blocks
        rest = Source(leg.decode, 0, num_blocks + missing) if missing > _COMPUTED_BLOCKS else None
        return placement._replace(prefill=None, source=rest)

    async def _get(self, worker: str, request: Request, take: Params, num_tokens: int) -> None:
        """Have a worker get the KV of so many tokens; what does not come, it computes."""
        client, timeout_s = self._fleet.client(worker), self._config.move_timeout_s
        ready = for_one_token(request)
        got = await client.prefill(Order(ready, take, cached_only=True), timeout_s)
        if whole(got.get("num_tokens"), "num_tokens", _TOKENS_END) < num_tokens:
            _log.info("%s computes what it did not get: %s", worker, got.get("told"))
            await client.prefill(Order(ready), timeout_s)

    def _block_size(self, leg: Leg) -> int:
        size = self._fleet.client(leg.decode).description.get("block_size")
        assert isinstance(size, int), "it was checked when the worker was registered"
        return size
