"""The owner's side: makes its end of a pipe for a visitor, and sends what it asks for."""

import time

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import exact, number, whole
from stafette.kvtransfer.transport import Claim
from stafette.kvtransfer.transports.cuts import Cuts
from stafette.kvtransfer.transports.two_sided.board import PUT, Board
from stafette.kvtransfer.transports.two_sided.media import End, Media
from stafette.kvtransfer.transports.two_sided.pipe import OWNER
from stafette.kvtransfer.transports.two_sided.pools import Streams, pool_of
from stafette.kvtransfer.transports.two_sided.stream import Digest, Stream
from stafette.kvtransfer.transports.visits.reception import Host, Visitor
from stafette.kvtransfer.transports.visits.talk import READ, Question

JOIN, TAKEN = "join", "taken"
MAX_PART_BYTES = 64 << 20
_MAX_JOIN_S = 60.0
_LONGEST_JOB_S = 600.0  # then a reader that takes nothing has lost its pipe
_MAX_DEVICES = 1 << 16
_NO_GREETING = 0


class Sender(Host):
    def __init__(self, visitor: Visitor, media: Media) -> None:
        self._visitor = visitor
        self._talk = visitor.talk
        self._media = media
        self._streams = Streams()
        self._stream: Stream | None = None

    def serve(self) -> None:
        while True:
            message = self._talk.hear()
            match message:
                case ["join", medium, part_bytes, device, left_s]:
                    self._join(
                        exact(medium, "medium", str),
                        whole(part_bytes, "part bytes", MAX_PART_BYTES + 1),
                        whole(device, "device", _MAX_DEVICES),
                        min(number(left_s, "time left"), _MAX_JOIN_S),
                    )
                case ["taken"]:
                    self._joined().took()
                case ["read", *_]:
                    self._read(Question.read(message))
                case ["put", *_]:  # a store's afterthought; nobody waits for it
                    pass
                case _:
                    raise MalformedMessage("message", f"{JOIN}, {READ}, {TAKEN} or {PUT}")

    def stop(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.pipe.abort()

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _join(self, medium: str, part_bytes: int, device: int, left_s: float) -> None:
        self.close()
        board = Board(self._talk, time.monotonic() + left_s)
        end = End(board, OWNER, self._talk.local_host, device, self._streams)
        self._stream = Stream(self._media.make(medium, end), max(1, part_bytes))

    def _read(self, question: Question) -> None:
        stream = self._joined()
        deadline = time.monotonic() + min(question.left_s, _LONGEST_JOB_S)

        def move(claim: Claim) -> int:
            digest = Digest(question.verify)
            pool = pool_of(claim.region, self._streams)
            cuts = Cuts(question.source, stream.part_bytes)
            stream.send(cuts, pool, digest, lambda: self._hear_taken(deadline))
            return digest.value()

        self._visitor.answer(question, _NO_GREETING, move)

    def _joined(self) -> Stream:
        if self._stream is None:
            raise MalformedMessage("message", f"{JOIN} before anything else")
        return self._stream

    def _hear_taken(self, deadline: float) -> None:
        """A reader that has gone is noticed here, and one that takes nothing."""
        if self._talk.hear(deadline) != [TAKEN]:
            raise MalformedMessage("message", TAKEN)
        self._joined().took()
