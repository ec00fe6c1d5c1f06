"""The reader's side: visits the owner, receives through a pipe, unpacks."""

import time
from typing import Protocol

from stafette.kvtransfer.errors import ChecksumMismatch
from stafette.kvtransfer.transport import PeerControl, PeerInfo
from stafette.kvtransfer.transports.cuts import Cuts
from stafette.kvtransfer.transports.two_sided.board import Board
from stafette.kvtransfer.transports.two_sided.media import NAME, End, Media, Path, choose
from stafette.kvtransfer.transports.two_sided.pipe import READER
from stafette.kvtransfer.transports.two_sided.pools import Streams, pool_of
from stafette.kvtransfer.transports.two_sided.sender import JOIN, TAKEN
from stafette.kvtransfer.transports.two_sided.stream import Digest, Stream
from stafette.kvtransfer.transports.visits.lanes import Turn, Worker
from stafette.kvtransfer.transports.visits.visit import Visit


class Limits(Protocol):
    """What a puller needs of the transport's config."""

    @property
    def part_bytes(self) -> int: ...

    @property
    def join_timeout_s(self) -> float: ...


class Puller(Worker):
    """Keeps its visit and its pipe from one job to the next, as long as they work."""

    def __init__(self, peer: PeerInfo, control: PeerControl, media: Media, limits: Limits) -> None:
        self._peer = peer
        self._control = control
        self._media = media
        self._limits = limits
        self._streams = Streams()
        self._visit: Visit | None = None
        self._stream: Stream | None = None
        self._path: Path | None = None
        self._receiving = False

    def interrupt(self) -> None:
        """An owner that is not told yet ends the part that it sends, which leaves gloo in peace."""
        visit, stream = self._visit, self._stream
        if self._receiving and stream is not None:
            stream.pipe.abort()
        elif visit is not None:
            visit.talk.shutdown()

    def close(self) -> None:
        visit, self._visit = self._visit, None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        if visit is not None:
            visit.talk.close()

    def work(self, turn: Turn) -> bool:
        """TransferErrors are the owner's answer, or ours to it: nothing is left on the way."""
        job = turn.job
        visit, stream = self._joined(turn)
        visit.ask(job)
        digest, pool = Digest(job.verify), pool_of(job.local, self._streams)

        def arrived(nbytes: int) -> None:
            turn.check()
            visit.talk.say(TAKEN)
            job.advance(nbytes)

        self._receiving = True  # before it is looked whether to begin, and
        try:
            turn.begin()
            stream.receive(Cuts(job.into, stream.part_bytes), pool, digest, job.deadline, arrived)
        finally:
            self._receiving = False  # before it is looked whether to go on: no interrupt is lost
        turn.check()
        if visit.closing_word(job.deadline) != digest.value():
            raise ChecksumMismatch(self._peer.name, job.remote.name)
        return True

    def _joined(self, turn: Turn) -> tuple[Visit, Stream]:
        """Return the way that is there, or, where the job needs another one, make it."""
        path = choose(self._media, self._peer, turn.job.remote, turn.job.local)
        if self._visit is None or self._stream is None or path != self._path:
            self.close()
            return self._join(path, turn)
        return self._visit, self._stream

    def _join(self, path: Path, turn: Turn) -> tuple[Visit, Stream]:
        left_s = min(turn.job.deadline - time.monotonic(), self._limits.join_timeout_s)
        deadline = time.monotonic() + left_s
        self._visit = visit = Visit(self._control, NAME, left_s)
        turn.check()
        part_bytes = self._limits.part_bytes
        visit.talk.say(JOIN, path.medium, part_bytes, path.their_device, left_s)
        board = Board(visit.talk, deadline)
        end = End(board, READER, visit.talk.local_host, path.our_device, self._streams)
        self._stream = stream = Stream(self._media.make(path.medium, end), part_bytes)
        self._path = path
        turn.check()
        return visit, stream
