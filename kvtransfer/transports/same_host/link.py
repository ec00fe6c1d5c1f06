"""The reader's side of the transports of one host: jobs, and the peer's regions that are open."""

import logging
import os
import threading
import time
from collections.abc import Callable

from stafette.kvtransfer.errors import (
    AccessDenied,
    ChecksumMismatch,
    InvalidValue,
    LeaseEnded,
    MalformedMessage,
    PeerLost,
    StaleEpoch,
    TransferCancelled,
    TransferError,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.strict import octets
from stafette.kvtransfer.transport import (
    Grant,
    Link,
    OneRange,
    PeerControl,
    PeerInfo,
    ReadJob,
)
from stafette.kvtransfer.transports.same_host.config import SameHostConfig
from stafette.kvtransfer.transports.same_host.digests import DIGEST_BYTES, digest
from stafette.kvtransfer.transports.same_host.opened import Opened, Stopped
from stafette.kvtransfer.transports.same_host.workers import Workers

_log = logging.getLogger(__name__)

_ASK_WHY_S = 1.0  # for the owner's word on a lease that we found struck out
_END_S = 0.1  # for threads to end: what they copy stops within a millisecond
_LEAST_S = 1e-3  # what a call is given at least

Opener = Callable[[PeerInfo, RegionInfo, object, list[int]], Opened]


class _TakenAway(Exception):
    """Somebody else has finished the job."""


class SameHostLink(Link):
    """Small jobs are done by whoever posts them, once their region is open; threads do the others.

    A job that waits for the owner's answer can be ended at once, for nothing of it moves.
    """

    def __init__(
        self,
        name: str,
        peer: PeerInfo,
        control: PeerControl,
        opener: Opener,
        config: SameHostConfig,
    ) -> None:
        self._name = name
        self._peer = peer
        self._control = control
        self._opener = opener
        self._config = config
        self._opened: dict[tuple[str, int], Opened] = {}
        self._lock = threading.Lock()  # of the regions
        self._workers = Workers(f"{name}-{peer.name}", config.threads, self._run)

    @property
    def closed(self) -> bool:
        return self._workers.closed

    def read_now(self, one: OneRange, grant: Grant, local: LocalRegion) -> bool:
        opened = self._opened.get((grant.region.name, grant.region.generation))
        small = one[2] <= self._config.inline_bytes
        return opened is not None and small and opened.read_now(one, grant, local)

    def start(self, job: ReadJob) -> None:
        opened = self._opened.get((job.remote.name, job.remote.generation))
        if opened is not None and self._is_quick(job, opened) and self._read_here(job, opened):
            return
        if not self._workers.add(job):
            job.finish(self._no_worker())

    def interrupt(self, job: ReadJob) -> None:
        if self._workers.take(job, waiting_only=True):
            job.finish(TransferCancelled(self._peer.name))

    def close(self) -> None:
        for job in self._workers.close():
            job.finish(self._lost())
        self._workers.join(_END_S)
        with self._lock:
            opened, self._opened = self._opened, {}
        for each in opened.values():
            each.retire()

    def _is_quick(self, job: ReadJob, opened: Opened) -> bool:
        small = job.into.total_bytes <= self._config.inline_bytes
        return small and opened.quick and not job.verify

    def _read_here(self, job: ReadJob, opened: Opened) -> bool:
        """Do it at once; False when its owner has to be asked first."""
        if not opened.hold():
            return False
        error: TransferError | None = None
        try:
            opened.read(job)
        except (LeaseEnded, StaleEpoch):
            return False
        except Stopped:
            error = TransferCancelled(self._peer.name)
        except TransferError as found:
            error = _bare(found)
        except Exception:  # a worker meets it too, and tells
            return False
        finally:
            opened.release()
        job.finish(error)
        return True

    def _run(self, job: ReadJob) -> None:
        """Serve a job, in a thread of the workers."""
        error: TransferError | None = None
        try:
            self._serve(job)
        except _TakenAway:
            return
        except Stopped:
            error = self._lost() if self.closed else TransferCancelled(self._peer.name)
        except TransferError as found:
            error = _bare(found)
        except Exception as bug:  # whoever waits for the job must hear of it
            _log.exception("reading %s/%s failed", self._peer.name, job.remote.name)
            error = TransferError(f"{self._name} failed: {type(bug).__name__}, see the log")
        if self._workers.take(job):
            job.finish(error)

    def _serve(self, job: ReadJob) -> None:
        opened = self._open(job)
        try:
            if not self._workers.begin(job):
                raise _TakenAway
            opened.read(job)
            self._workers.pause(job)
        except (LeaseEnded, StaleEpoch) as found:
            self._workers.pause(job)
            raise self._reason(job, found) from None
        finally:
            opened.release()
        if job.verify:
            self._compare(job)

    def _open(self, job: ReadJob) -> Opened:
        """Return the job's region, held for us."""
        with self._lock:
            gone = self._take_out(lambda each: each.truth.gone)
            opened = self._opened.get(_key(job.remote))
            if opened is not None:
                opened.hold()
        for each in gone:
            each.retire()
        if opened is not None:
            return opened
        try:
            return self._keep(self._ask_to_open(job))
        except (OSError, InvalidValue, MalformedMessage) as error:
            raise TransportUnavailable(self._name, self._peer.name, str(error)) from error

    def _ask_to_open(self, job: ReadJob) -> Opened:
        limit_s = min(self._config.open_timeout_s, _left_s(job))
        answer, fds = self._control.call_fds(f"{self._name}.open", _about(job), limit_s)
        try:
            return self._opener(self._peer, job.remote, answer, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _keep(self, opened: Opened) -> Opened:
        """Remember an open region in place of its older generations; return it, held for us."""
        key = _key(opened.info)
        with self._lock:
            kept = None if self.closed else self._opened.setdefault(key, opened)
            dropped = [] if kept is opened else [opened]  # another thread was quicker
            if kept is not None:
                kept.hold()
                name, newest = key
                dropped += self._take_out(
                    lambda each: each.info.name == name and each.info.generation < newest
                )
        for each in dropped:
            each.retire()
        if kept is None:
            raise self._lost()
        return kept

    def _take_out(self, unwanted: Callable[[Opened], bool]) -> list[Opened]:
        """Forget regions, which the caller retires. The lock is held."""
        chosen = [key for key, each in self._opened.items() if unwanted(each)]
        return [self._opened.pop(key) for key in chosen]

    def _reason(self, job: ReadJob, found: TransferError) -> TransferError:
        """Return why a lease is over, as its owner tells it; what we found when it does not."""
        limit_s = min(_ASK_WHY_S, _left_s(job))
        try:
            self._control.call(f"{self._name}.why", _about(job), limit_s)
        except (LeaseEnded, StaleEpoch, AccessDenied) as told:
            return told
        except (TransferError, MalformedMessage):
            pass
        return found

    def _compare(self, job: ReadJob) -> None:
        """Raise ChecksumMismatch unless the owner's bytes are what arrived."""
        question = [job.grant.lease_id, job.source.pack()]
        answer = self._control.call(f"{self._name}.digest", question, _left_s(job))
        try:
            theirs = octets(answer, "digest", DIGEST_BYTES)
        except MalformedMessage as error:
            raise TransferError(f"{self._peer.name}: {error}") from error
        if digest(job.local, job.into) != theirs:
            raise ChecksumMismatch(self._peer.name, job.remote.name)

    def _no_worker(self) -> TransferError:
        if self.closed:
            return self._lost()
        return TransportUnavailable(self._name, self._peer.name, "no thread can be started")

    def _lost(self) -> PeerLost:
        return PeerLost(self._peer.name, "the way to it was closed")


def _bare(error: TransferError) -> TransferError:
    """Take from an error what leads to our frames: whoever keeps it would keep regions mapped."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def _key(info: RegionInfo) -> tuple[str, int]:
    return info.name, info.generation


def _about(job: ReadJob) -> list[object]:
    """Return a question about a job's lease: its first range stands for all."""
    first = Extents(job.source.region, job.source.offsets[:1], job.source.lengths[:1])
    return [job.grant.lease_id, first.pack()]


def _left_s(job: ReadJob) -> float:
    return max(_LEAST_S, job.deadline - time.monotonic())
