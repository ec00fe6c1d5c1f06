"""The owner's end of a connection: requests come in, the blocks that they name go out.

One thread does everything for a connection. It looks for messages after every frame, and the jobs
under way take turns. As long as there are none it stands at its desk, where native code answers
small requests. What a peer asks is checked before its first byte is sent, and again after the
last one, before the frame that tells the reader that its bytes are good.
"""

import logging

from stafette.kvtransfer.control.frames import FrameReader
from stafette.kvtransfer.errors import (
    KvTransferError,
    MalformedMessage,
    TransferCancelled,
    TransferError,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import MAX_EXTENTS
from stafette.kvtransfer.transport import PeerInfo, Surroundings
from stafette.kvtransfer.transports.tcp_config import TcpConfig
from stafette.kvtransfer.transports.tcp_counters import TcpTally
from stafette.kvtransfer.transports.tcp_desk import AT_ONCE_BYTES, OwnerDesk
from stafette.kvtransfer.transports.tcp_frames import (
    MAX_REQUEST_BYTES,
    Cancel,
    Request,
    done,
    failed,
    read_message,
)
from stafette.kvtransfer.transports.tcp_tasks import Task, open_task
from stafette.kvtransfer.transports.tcp_wire import Wire

_log = logging.getLogger(__name__)


class OwnerEnd:
    """Serves one peer until the connection ends."""

    def __init__(
        self,
        wire: Wire,
        peer: PeerInfo,
        ours: Surroundings,
        config: TcpConfig,
        tally: TcpTally,
    ) -> None:
        self._wire = wire
        self._peer = peer
        self._ours = ours
        self._config = config
        self._tally = tally
        self._messages = FrameReader(MAX_REQUEST_BYTES)
        self._tasks: dict[int, Task] = {}  # whose turn is next comes first
        self._desk = OwnerDesk(ours.gate, tally) if wire.native else None

    def run(self) -> None:
        """OSError when the connection breaks, MalformedMessage for what is no message of ours."""
        try:
            while self._take_in():
                if self._tasks:
                    self._take_turn()
        finally:
            for task in self._tasks.values():
                task.release()
            if self._desk is not None:
                self._desk.close()

    def _take_in(self) -> bool:
        """Handle what has come, wait for it when there is nothing else to do; False at the end."""
        data = self._receive()
        for body in self._messages.feed(data or b""):
            self._handle(read_message(body))
        return data != b""

    def _receive(self) -> bytes | None:
        """Return some bytes, none at the end; None when nothing is there and jobs are under way."""
        stall_s, partial = self._config.stall_timeout_s, self._messages.partial
        if not self._tasks and not self._wire.holds_back:
            if self._desk is not None and not partial:
                return self._desk.serve(self._wire.fd, stall_s)
            if not self._wire.await_input(stall_s if partial else None):
                raise TimeoutError("the rest of a message did not come")
        return self._wire.recv()

    def _handle(self, message: Request | Cancel) -> None:
        if isinstance(message, Request):
            self._tally.count("requests")
            self._open(message)
        elif message.number in self._tasks:  # otherwise this message and the last frame crossed
            cancelled = TransferCancelled(self._ours.name)
            self._end(self._tasks[message.number], failed(message.number, cancelled))

    def _open(self, request: Request) -> None:
        if request.number in self._tasks:
            raise MalformedMessage("number", f"one that is not under way, not {request.number}")
        try:
            self._check_room(request)
            task = open_task(request, self._peer, self._ours, self._config)
            self._tasks[request.number] = task
            if self._desk is not None:
                self._desk.seen(request, task.claim)
        except KvTransferError as error:
            self._tally.refused(error)
            self._send(failed(request.number, error))
        except Exception:  # the gate's bug; the peer learns no details
            _log.exception("a request of %s failed", self._peer.name)
            shown = f"the request failed at peer {self._ours.name}, whose log says why"
            self._send(failed(request.number, TransferError(shown)))

    def _check_room(self, request: Request) -> None:
        """A peer that keeps to its own limits never meets ours."""
        under_way, limit = len(self._tasks), self._config.max_requests
        num_extents = sum(task.num_extents for task in self._tasks.values())
        if under_way >= limit or (under_way and num_extents + len(request.source) > MAX_EXTENTS):
            reason = f"{under_way} requests with {num_extents} ranges are under way"
            raise TransportUnavailable("tcp", self._ours.name, reason)

    def _take_turn(self) -> None:
        """Let the next job send; it comes last then."""
        number, task = next(iter(self._tasks.items()))
        before, last = task.left, b""
        try:
            if before <= AT_ONCE_BYTES:
                last = task.copy_rest()
            else:
                task.send_some(self._wire, alone=len(self._tasks) == 1)
            task.claim.check()  # what was read until now is good, or the job ends here
        except TransferError as error:
            self._tally.refused(error)
            self._end(task, failed(number, error))
        else:
            if task.left:
                self._tasks[number] = self._tasks.pop(number)
            else:
                self._end(task, done(number, task.digest(), last))
        self._tally.count("bytes_out", before - task.left)

    def _end(self, task: Task, frames: bytes) -> None:
        """Tell the reader, and give the blocks back: also to a reader that takes its time."""
        try:
            rest = frames[self._wire.send_now(frames) :]
        finally:
            del self._tasks[task.number]
            task.release()
        if rest:
            self._send(rest)

    def _send(self, frame: bytes) -> None:
        self._wire.send_all(frame, self._config.stall_timeout_s)
