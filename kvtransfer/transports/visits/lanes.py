"""A link whose jobs run in a few threads, each with a way of its own to the peer."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from stafette.kvtransfer.errors import (
    MalformedMessage,
    PeerLost,
    TransferCancelled,
    TransferError,
    TransferTimedOut,
)
from stafette.kvtransfer.transport import Link, ReadJob

_log = logging.getLogger(__name__)

_CLOSED = "the link to it was closed"
_CLOSE_S = 10.0


class Turn:
    """A job in the hands of a worker. Until it has begun to write, the job can end without it."""

    def __init__(self, job: ReadJob, link: "LaneLink") -> None:
        self.job = job
        self._link = link
        self._begun = False
        self._ended = False
        self._lock = threading.Lock()

    @property
    def link_closed(self) -> bool:
        return self._link.closed

    def check(self) -> None:
        """Raise TimeoutError when the job was stopped, or the link closed."""
        stopped = self.job.stop.value or self._link.closed
        if stopped or time.monotonic() >= self.job.deadline:
            raise TimeoutError

    def error_of(self, error: Exception) -> TransferError:
        """Return how the job ends when its work broke off with that."""
        return self._link.error_of(self.job, error)

    def begin(self) -> None:
        """Say that from here on the destination is written; TimeoutError when it must not be."""
        self.check()
        with self._lock:
            if self._ended:
                raise TimeoutError
            self._begun = True

    def give_up(self, error: TransferError) -> None:
        """End the job at once, if nothing can be written yet."""
        with self._lock:
            if self._begun or self._ended:
                return
            self._ended = True
        self.job.finish(error)

    def finish(self, error: TransferError | None) -> None:
        """The worker has left the destination."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self.job.finish(error)


class Worker(ABC):
    """Does jobs one after the other, in its thread."""

    @abstractmethod
    def work(self, turn: Turn) -> bool:
        """Copy; errors end the job. False: it is not over, somebody else calls `job.finish`.

        What `interrupt` could not see yet is followed by a `turn.check` once it can be seen.
        After an error that is no TransferError the worker is closed, and may get another job.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Wake `work`, from another thread: `turn.check` raises now."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. Jobs are over by then."""


class LaneLink(Link):
    def __init__(self, peer: str, make_worker: Callable[[], Worker], lanes: int) -> None:
        self._peer = peer
        self._make_worker = make_worker
        self._most_lanes = lanes
        self._waiting: deque[ReadJob] = deque()
        self._began: dict[ReadJob, float] = {}
        self._lanes: list[_Lane] = []
        self._idle = 0
        self.closed = False
        self._changed = threading.Condition()

    def start(self, job: ReadJob) -> None:
        with self._changed:
            error = self._take(job)
        if error is not None:
            job.finish(error)
        elif job.stop.value:  # since before it was here
            self.interrupt(job)

    def interrupt(self, job: ReadJob) -> None:
        with self._changed:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
            lanes = list(self._lanes)
        if waits:
            error = self._given_up(job)
            self.forget(job)
            job.finish(error)
        for lane in lanes:
            lane.interrupt(job)

    def close(self) -> None:
        with self._changed:
            self.closed = True
            waiting, lanes = list(self._waiting), list(self._lanes)
            self._waiting.clear()
            self._changed.notify_all()
        for job in waiting:
            self.forget(job)
            job.finish(PeerLost(self._peer, _CLOSED))
        for lane in lanes:
            lane.interrupt(None)
        deadline = time.monotonic() + _CLOSE_S
        for lane in lanes:
            lane.join(deadline)

    def next_job(self) -> ReadJob | None:
        """Return the job that waits longest; None when the link is closed."""
        with self._changed:
            self._idle += 1
            while not self._waiting and not self.closed:
                self._changed.wait()
            self._idle -= 1
            return None if self.closed else self._waiting.popleft()

    def forget(self, job: ReadJob) -> None:
        self._began.pop(job, None)

    def error_of(self, job: ReadJob, error: Exception) -> TransferError:
        """Return how a job ended whose work broke off."""
        if self.closed:
            return PeerLost(self._peer, _CLOSED)
        if job.stop.value or isinstance(error, TimeoutError):
            return self._given_up(job)
        if isinstance(error, TransferError):
            # Whoever keeps the error would keep our frames, and the buffers there.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            return error
        if isinstance(error, MalformedMessage):
            return PeerLost(self._peer, f"it does not speak our protocol ({error})")
        if isinstance(error, OSError):
            return PeerLost(self._peer, str(error) or type(error).__name__)
        _log.error("a read from %s failed", self._peer, exc_info=error)
        return TransferError(f"reading from {self._peer} failed: {type(error).__name__}")

    def _given_up(self, job: ReadJob) -> TransferError:
        """Return how a job ends that somebody stopped, or whose time is over."""
        if job.stop.value and time.monotonic() < job.deadline:
            return TransferCancelled(self._peer)
        limit_s = job.deadline - self._began[job]
        return TransferTimedOut(self._peer, "reading", round(limit_s, 3))

    def _take(self, job: ReadJob) -> TransferError | None:
        """The lock is held. Return why the job cannot be taken."""
        if self.closed:
            return PeerLost(self._peer, _CLOSED)
        if len(self._waiting) >= self._idle and len(self._lanes) < self._most_lanes:
            try:
                self._lanes.append(_Lane(self, self._make_worker(), self._peer))
            except RuntimeError as error:  # no thread can be started
                if not self._lanes:
                    return TransferError(f"reading from {self._peer}: {error}")
        self._began[job] = time.monotonic()
        self._waiting.append(job)
        self._changed.notify()
        return None


class Links:
    """The links of a transport, so that it can end them."""

    def __init__(self) -> None:
        self._links: set[LaneLink] = set()
        self._lock = threading.Lock()

    def add(self, link: LaneLink) -> LaneLink:
        with self._lock:
            self._links = {each for each in self._links if not each.closed} | {link}
        return link

    def close(self) -> None:
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.close()


class _Lane:
    """One thread, its worker, and the job that it has."""

    def __init__(self, link: LaneLink, worker: Worker, peer: str) -> None:
        self._link = link
        self._worker = worker
        self._turn: Turn | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"reading-{peer}", daemon=True)
        self._thread.start()

    def interrupt(self, job: ReadJob | None) -> None:
        """Wake the worker if it has that job, or, with None, any."""
        with self._lock:
            turn = self._turn
            if turn is None or job not in (turn.job, None):
                return
            self._worker.interrupt()
            error = turn.error_of(TimeoutError())
        turn.give_up(error)

    def join(self, deadline: float) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                _log.error("%s still runs %g s after its end", self._thread.name, _CLOSE_S)

    def _run(self) -> None:
        try:
            while (job := self._link.next_job()) is not None:
                self._do(Turn(job, self._link))
        finally:
            self._worker.close()

    def _do(self, turn: Turn) -> None:
        with self._lock:
            self._turn = turn
        error, over, worked, sound = None, True, False, True
        try:
            turn.check()  # what stopped it before it was ours has woken nobody
            worked = True
            over = self._worker.work(turn)
        except Exception as broke:  # the edge of this thread
            error = turn.error_of(broke)
            sound = not worked or isinstance(broke, TransferError)
        with self._lock:
            self._turn = None
            self._link.forget(turn.job)
        if over:
            turn.finish(error)
        if not sound:
            self._worker.close()
