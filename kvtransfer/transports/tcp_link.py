"""The way to one peer: which of its streams brings a job, and whether several do."""

from collections.abc import Callable

from stafette.kvtransfer.transport import Link, ReadJob
from stafette.kvtransfer.transports.tcp_parts import Part, Work, cut
from stafette.kvtransfer.transports.tcp_stream import Stream
from stafette.kvtransfer.transports.tcp_way import Way


class TcpLink(Link):
    """With several streams the first is kept for small jobs, which so never wait for large ones."""

    def __init__(self, way: Way, on_closed: Callable[["TcpLink"], None]) -> None:
        self._way = way
        self._on_closed = on_closed
        self._streams = [Stream(way) for _ in range(way.config.streams)]
        self._works: dict[int, Work] = {}  # by the id of the job

    def start(self, job: ReadJob) -> None:
        work = Work(job, self._way, self._forget)
        parts = work.parts = self._parts(work)
        work.num_parts = len(parts)
        self._works[id(job)] = work
        if job.stop.value:  # an interrupt may have come before the job was known
            work.stop.value = 1
        for part in parts:
            part.carrier.start(part)

    def interrupt(self, job: ReadJob) -> None:
        work = self._works.get(id(job))
        if work is not None:
            work.interrupt()

    def lend(self, job: ReadJob, until: float) -> None:
        work = self._works.get(id(job))
        parts = work.parts if work is not None else []
        if work is not None and len(parts) == 1:
            stop, works = work.stop, self._works
            parts[0].carrier.lend(parts[0], lambda: stop.value or id(job) not in works, until)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._on_closed(self)

    def _parts(self, work: Work) -> list[Part]:
        config, job = self._way.config, work.job
        num_bytes = job.into.total_bytes
        if num_bytes <= config.small_bytes or len(self._streams) == 1:
            return [Part(work, self._streams[0], job.into, job.source)]
        large = self._streams[1:]
        if num_bytes < config.spread_bytes or len(large) == 1:
            idlest = min(large, key=lambda stream: stream.num_bytes)
            return [Part(work, idlest, job.into, job.source)]
        into, source = cut(job.into, len(large)), cut(job.source, len(large))
        return [Part(work, *each) for each in zip(large, into, source, strict=True)]

    def _forget(self, job: ReadJob) -> None:
        self._works.pop(id(job), None)
