"""One connection of a peer that calls: its questions in, the answers out as they come."""

import errno
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial

from stafette.kvtransfer.control import frames
from stafette.kvtransfer.control.channel import MAX_FDS, RECV_BYTES, Channel
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.counters import Tally
from stafette.kvtransfer.control.remote_errors import pack_error
from stafette.kvtransfer.control.slow_pool import SlowPool
from stafette.kvtransfer.errors import (
    AccessDenied,
    InvalidValue,
    KvTransferError,
    MalformedMessage,
    TransferError,
)
from stafette.kvtransfer.strict import exact, text, unpack, whole
from stafette.kvtransfer.transport import Handover, Operation, PeerInfo

_log = logging.getLogger(__name__)

ANSWERED, RAISED = 0, 1  # how a call ended
MAX_CALL_ID = 1 << 63
MAX_OPERATION_BYTES = 128
# Not the peer's fault: a descriptor that is closed already, or too many on their way.
_UNSENDABLE = (errno.EBADF, errno.ETOOMANYREFS)


@dataclass(frozen=True, slots=True)
class SlowOperation:
    """An operation that may wait: it runs in a thread of the server's pool."""

    run: Operation

    def __call__(self, peer: PeerInfo, payload: object) -> object:
        return self.run(peer, payload)


@dataclass(frozen=True, slots=True)
class Desk:
    """What all connections of a server share."""

    name: str
    config: ControlConfig
    operations: Mapping[str, Operation]
    pool: SlowPool
    tally: Tally


@dataclass(frozen=True, slots=True)
class Question:
    call_id: int
    operation: str
    payload: object
    wants_fds: bool

    @classmethod
    def read(cls, body: bytes, max_bytes: int) -> "Question":
        match unpack(body, max_bytes):
            case [call_id, operation, payload, wants_fds]:
                return cls(
                    whole(call_id, "call id", MAX_CALL_ID),
                    text(operation, "operation", MAX_OPERATION_BYTES),
                    payload,
                    exact(wants_fds, "wants fds", bool),
                )
        raise MalformedMessage("call", "[id, operation, payload, wants fds]")


class Serving:
    """Quick operations run in the connection's own thread, one after the other."""

    def __init__(self, channel: Channel, peer: PeerInfo, desk: Desk) -> None:
        self._channel = channel
        self._peer = peer
        self._desk = desk
        self._reader = frames.FrameReader(desk.config.max_frame_bytes)
        self._deferred: set[Future[object]] = set()  # what is answered when it is done
        self._queued: set[Future[object]] = set()  # of those, what the pool was given
        self._ended = False

    def run(self) -> None:
        """Answer until the connection ends; MalformedMessage for bytes that break the format."""
        max_bytes = self._desk.config.max_frame_bytes
        try:
            while data := self._channel.recv(RECV_BYTES, None):
                for body in self._reader.feed(data):
                    self._take(Question.read(body, max_bytes))
        finally:
            self._drop_queued()

    def _take(self, question: Question) -> None:
        operation = self._desk.operations.get(question.operation)
        if operation is None:
            reason = "it has no such operation"
            self._fail(question, AccessDenied(self._desk.name, question.operation, reason))
            return
        self._desk.tally.called(question.operation)
        if isinstance(operation, SlowOperation):
            self._answer(question, partial(self._submit, question, operation.run))
        else:
            self._answer(question, partial(operation, self._peer, question.payload))

    def _answer(self, question: Question, find: Callable[[], object]) -> None:
        """Send what `find` returns, or what it raises."""
        try:
            result = find()
            if isinstance(result, Future):
                self._defer(question, result)
            elif isinstance(result, Handover):
                self._hand_over(question, result)
            else:
                self._send_result(question, result)
        except KvTransferError as error:
            self._fail(question, error)
        except CancelledError:
            self._fail_unforeseen(question)
        except Exception:  # the operation's bug; the peer learns no details
            _log.exception("%s asked by %s failed", question.operation, self._peer.name)
            self._fail_unforeseen(question)

    def _submit(self, question: Question, run: Operation) -> "Future[object]":
        self._check_room(question)
        future = self._desk.pool.submit(partial(run, self._peer, question.payload))
        self._queued.add(future)  # a running one cannot be cancelled, and is left alone
        return future

    def _defer(self, question: Question, future: "Future[object]") -> None:
        """Answer when the future is done, in the thread that ends it."""
        self._check_room(question)
        self._deferred.add(future)
        future.add_done_callback(partial(self._done, question))

    def _check_room(self, question: Question) -> None:
        limit = self._desk.config.max_slow_calls
        if len(self._deferred) >= limit:
            reason = f"{limit} slow calls are under way"
            raise AccessDenied(self._desk.name, question.operation, reason)

    def _done(self, question: Question, future: "Future[object]") -> None:
        self._queued.discard(future)
        self._deferred.discard(future)
        if not self._ended:
            self._answer(question, future.result)

    def _drop_queued(self) -> None:
        """What was not begun yet for a peer that is gone never is."""
        self._ended = True
        for future in list(self._queued):
            future.cancel()

    def _send_result(self, question: Question, result: object) -> None:
        fds: list[int] = []
        if question.wants_fds:
            result, fds = _split(result)
        try:
            answer_frame = self._frame(question, ANSWERED, result, len(fds))
        except InvalidValue as error:
            _log.error("no answer of %s can be sent: %s", question.operation, error)
            self._fail_unforeseen(question)
            return
        self._send(answer_frame, fds, question)

    def _hand_over(self, question: Question, result: Handover) -> None:
        try:
            with_fds = result.answer, list(result.fds)
            self._send_result(question, with_fds if question.wants_fds else result.answer)
        finally:
            for fd in result.fds:
                os.close(fd)

    def _fail_unforeseen(self, question: Question) -> None:
        self._desk.tally.failed()
        shown = f"{question.operation} failed at peer {self._desk.name}, whose log says why"
        self._fail(question, TransferError(shown))

    def _fail(self, question: Question, error: KvTransferError) -> None:
        self._desk.tally.raised(type(error).__name__)
        self._send(self._frame(question, RAISED, pack_error(error), 0), [], question)

    def _frame(self, question: Question, how: int, value: object, num_fds: int) -> bytes:
        max_bytes = self._desk.config.max_frame_bytes
        return frames.encode([question.call_id, how, value, num_fds], max_bytes)

    def _send(self, frame: bytes, fds: list[int], question: Question) -> None:
        """A peer that does not take its answer loses the connection, not our thread."""
        try:
            self._channel.send_within(frame, self._desk.config.send_timeout_s, fds)
        except OSError as error:
            if fds and error.errno in _UNSENDABLE:
                _log.error("no descriptors of %s can be sent: %s", question.operation, error)
                self._fail_unforeseen(question)
                return
            _log.info("no answer to %s: %s", self._peer.name, str(error) or "it does not read")
            self._channel.shutdown()


def _split(result: object) -> tuple[object, list[int]]:
    """Return the answer and its descriptors; an operation may have none to give."""
    if not isinstance(result, tuple):
        return result, []
    answer, fds = result
    if len(fds) > MAX_FDS:
        raise ValueError(f"{len(fds)} file descriptors, more than {MAX_FDS}")
    return answer, list(fds)
