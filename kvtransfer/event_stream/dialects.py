"""How the workers of different engines speak: what their messages hold, and what they promise."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, get_args

from stafette.kvtransfer import events
from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.events import EventBatch
from stafette.kvtransfer.vllm_events import VllmReader

logger = logging.getLogger(__name__)

DialectName = Literal["stafette", "vllm"]


class Dialect(ABC):
    """Reads one worker's messages."""

    heartbeats: bool  # it is heard of regularly; silence means that it is lost
    snapshots: bool  # it can always tell all that it has cached

    @abstractmethod
    def read(self, number: int, payload: bytes) -> EventBatch:
        """Return the batch, numbered from 1; MalformedMessage for what is none."""

    @abstractmethod
    def request(self, start: int) -> int:
        """Return the number to ask for when `start` is the first that is missing; 0: all of it."""


class StafetteDialect(Dialect):
    heartbeats = True
    snapshots = True

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id

    def read(self, number: int, payload: bytes) -> EventBatch:
        batch = events.decode(payload)
        if batch.worker_id != self._worker_id:
            raise MalformedMessage("worker id", self._worker_id)
        if batch.seq != number:
            raise MalformedMessage("seq", f"the message's number, {number}")
        return batch

    def request(self, start: int) -> int:
        return start


class VllmDialect(Dialect):
    """vLLM and SGLang number their batches from 0, and tell neither their name nor their epoch.

    Within one life numbers and times grow together. A batch whose number went back while its time
    went on is therefore from a new life, and one whose time did not is a duplicate. So we ask again
    for the last batch that we know: another one in its place, or none, shows another life.
    """

    heartbeats = False
    snapshots = False

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._life = 1
        self._newest = (0, 0.0)  # number and time
        self._reader = VllmReader()
        self._ignores = False

    def read(self, number: int, payload: bytes) -> EventBatch:
        batch = self._reader.read(payload)
        if batch.ignored and not self._ignores:
            self._ignores = True
            logger.info("some events of %s are of no use here, and ignored", self._worker_id)
        seq = number + 1
        last_seq, last_time = self._newest
        if seq <= last_seq and batch.timestamp > last_time:
            self._life += 1
            self._newest = (seq, batch.timestamp)
        elif seq > last_seq:
            self._newest = (seq, batch.timestamp)
        return EventBatch(self._worker_id, self._life, seq, batch.timestamp, batch.events)

    def request(self, start: int) -> int:
        return max(0, start - 2)


_DIALECTS: dict[DialectName, Callable[[str], Dialect]] = {
    "stafette": StafetteDialect,
    "vllm": VllmDialect,
}


def dialect_of(name: DialectName, worker_id: str) -> Dialect:
    if name not in _DIALECTS:
        raise InvalidValue("dialect", name, f"must be one of {', '.join(get_args(DialectName))}")
    return _DIALECTS[name](worker_id)
