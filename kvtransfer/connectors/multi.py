"""Several connectors as one: loads are put together from all of them, saves go to each.

A load takes from the first connector what that one has, and goes on with the next where it ends. So
it is never shorter than what any of them could have given alone, and what is near (put it first) is
not fetched from far away. A block that was saved is released when all have released it. What one of
them raises is logged and counted, and taken for "nothing"; the others do not notice.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.connectors import registry
from stafette.kvtransfer.connectors.connector import (
    Finish,
    KvConnector,
    KvRequest,
    KvShare,
    LoadOrder,
    Save,
)
from stafette.kvtransfer.connectors.countdown import Countdown, Once
from stafette.kvtransfer.connectors.loading import Load, failed_load
from stafette.kvtransfer.errors import InvalidValue, TransferError
from stafette.kvtransfer.events import KvEvent

_log = logging.getLogger(__name__)
Result = TypeVar("Result")
_ZERO: int | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiConfig:
    """The members in the order of preference, each as (name, its own config or None)."""

    connectors: tuple[tuple[str, object], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.connectors]
        if not names or len(set(names)) < len(names):
            raise InvalidValue("multi.connectors", names, "must be some connectors, each once")


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one member adds to a load, by places in the prompt."""

    member: int
    first: int
    end: int


class ChainedLoad(Load):
    """The loads of several connectors, one behind the other."""

    def __init__(self, order: LoadOrder) -> None:
        super().__init__(order)
        self.parts: list[tuple[KvConnector, Load]] = []

    def join(self, member: KvConnector, part: Load) -> None:
        """Take in a part; `begin_write` was called for it."""
        self.parts.append((member, part))
        part.on_ended(self._part_ended)
        part.on_settled(lambda _: self.end_write())
        self.on_ended(lambda _: part.cancel())

    def _part_ended(self, part: Load) -> None:
        first, count = part.order.first, part.num_arrived
        self.arrive(first, first + count)
        if part.error is not None:
            self.limit(first + count, part.error)


class MultiConnector(KvConnector):
    name = "multi"

    def __init__(self, members: Sequence[KvConnector]) -> None:
        self.members = tuple(members)
        self.saves_all = any(member.saves_all for member in members)
        self.failures: Counter[str] = Counter()  # by member, of calls that raised
        self._pieces: dict[str, list[_Piece]] = {}  # by request, from its match on

    @classmethod
    def of(cls, agent: Agent | None, config: MultiConfig) -> "MultiConnector":
        members: list[KvConnector] = []
        try:
            for name, own in config.connectors:
                members.append(registry.make(name, agent, own))
        except BaseException:
            for member in members:
                member.close()
            raise
        return cls(members)

    def on_kv_events(self, emit: Callable[[KvEvent], None]) -> None:
        for member in self.members:
            member.on_kv_events(emit)

    # The scheduler's side

    def check(self, params: Mapping[str, object]) -> None:
        for member in self.members:
            member.check(params)

    def matched_tokens(self, request: KvRequest, num_held: int) -> int | None:
        pieces: list[_Piece] = []
        held, size = num_held, request.block_size
        for number, member in enumerate(self.members):
            found = self._ask(member, _ZERO, member.matched_tokens, request, held)
            if found is None:
                return None
            pieces.append(_Piece(number, held // size, (held + found) // size))
            held += found
        self._pieces[request.request_id] = pieces
        return held - num_held

    def begin(self, request: KvRequest, first: int, blocks: Sequence[int]) -> LoadOrder:
        order = LoadOrder.of(request, first, blocks)
        source: list[tuple[int, int, int, object]] = []
        for piece in self._pieces.pop(request.request_id, []):
            start, end = (min(max(first, at), order.end) for at in (piece.first, piece.end))
            member, some = self.members[piece.member], order.blocks[start - first : end - first]
            began = self._ask(member, None, member.begin, request, start, some)
            if began is not None:
                source.append((piece.member, start, end, began.source))
            elif some:
                break
        return replace(order, source=source)

    def finish(self, request: KvRequest, reason: str = "") -> Finish:
        self._pieces.pop(request.request_id, None)
        keep, params = False, dict[str, object]()
        for member in self.members:
            found = self._ask(member, Finish(), member.finish, request, reason)
            keep |= found.keep
            params.update(found.params)
        return Finish(keep, params)

    def relieve(self) -> bool:
        return any([self._ask(member, False, member.relieve) for member in self.members])

    def note_step(self, prompt_tokens: int, seconds: float, waiting: int) -> None:
        for member in self.members:
            self._ask(member, None, member.note_step, prompt_tokens, seconds, waiting)

    def reset_cache(self) -> None:
        for member in self.members:
            self._ask(member, None, member.reset_cache)

    # The worker's side

    def register(self, shares: Sequence[KvShare]) -> None:
        super().register(shares)
        for member in self.members:
            member.register(shares)

    def start_load(self, order: LoadOrder) -> Load:
        whole, at = ChainedLoad(order), order.first
        for number, first, end, source in order.source:  # type: ignore[attr-defined]
            member, part = self.members[number], order.part(first, end, source)
            failed = failed_load(part, f"connector {member.name} failed")
            if not part.blocks:
                self._ask(member, failed, member.start_load, part)
            elif whole.begin_write():
                whole.join(member, self._ask(member, failed, member.start_load, part))
                at = end
        if at < order.end:
            whole.limit(at, TransferError(f"nobody began to load the last {order.end - at} blocks"))
        return whole

    def wait_layer(self, load: Load, layer: int, timeout_s: float) -> bool:
        assert isinstance(load, ChainedLoad), "a load belongs to the connector that began it"
        deadline = time.monotonic() + timeout_s
        return all(
            self._ask(member, True, member.wait_layer, part, layer, _left_s(deadline))
            for member, part in load.parts
        )

    def save_layer(self, layer: int, save: Save) -> None:
        release = save.release if self.completes(layer) else _nothing
        countdown = Countdown(len(self.members), release)
        for member in self.members:
            own = replace(save, release=Once(countdown.done))
            try:
                member.save_layer(layer, own)
            except Exception:  # the member's: the others go on
                self._note(member)
                own.release()

    def wait_saved(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        answers = [self._ask(m, True, m.wait_saved, _left_s(deadline)) for m in self.members]
        return all(answers)

    def close(self) -> None:
        for member in self.members:
            self._ask(member, None, member.close)

    def _ask(
        self,
        member: KvConnector,
        otherwise: Result,
        method: Callable[..., Result],
        *arguments: object,
    ) -> Result:
        """Return a member's answer, or what stands for it when it raises."""
        try:
            return method(*arguments)
        except Exception:  # the member's: the others go on
            self._note(member)
            return otherwise

    def _note(self, member: KvConnector) -> None:
        _log.exception("connector %s failed", member.name)
        self.failures[member.name] += 1


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _nothing() -> None:
    pass
