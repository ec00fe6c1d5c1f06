"""A job's bytes through a pipe: packed, sent, received and unpacked, two buffers in turn."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import xxhash

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.transports.cuts import Cuts
from stafette.kvtransfer.transports.two_sided.pipe import Pending, Pipe
from stafette.kvtransfer.transports.two_sided.pools import Pool

_TURNS = 2
_TAKEN_S = 5.0  # for our side to see that what the reader has got is sent


class Digest:
    """A checksum of the buffers of a verified job; 0 of any other."""

    def __init__(self, verify: bool) -> None:
        self._hash = xxhash.xxh3_64() if verify else None

    def take(self, pool: Pool, buffer: Any) -> None:
        if self._hash is not None:
            pool.settle()  # a GPU's buffer may still be filled
            self._hash.update(memoryview(buffer.cpu().numpy()))

    def value(self) -> int:
        return 0 if self._hash is None else self._hash.intdigest()


class Stream:
    """A pipe and its buffers: while one is under way, the other is packed or unpacked."""

    def __init__(self, pipe: Pipe, part_bytes: int) -> None:
        self.pipe = pipe
        self.part_bytes = part_bytes
        self._buffers = [pipe.buffer(part_bytes) for _ in range(_TURNS)]
        self._sent: deque[Pending] = deque()  # that the reader has not said it took

    def send(self, cuts: Cuts, pool: Pool, digest: Digest, hear_taken: Callable[[], None]) -> None:
        """Return when all is packed and on its way. `hear_taken` returns after a `took`."""
        for turn in range(len(cuts)):
            while len(self._sent) >= _TURNS:
                hear_taken()
            part = cuts[turn]
            buffer = self._next_buffer(part.nbytes)
            pool.gather(part, buffer)
            digest.take(pool, buffer)
            self._sent.append(self.pipe.send(buffer))

    def took(self) -> None:
        """The reader says that it has got the oldest part that is on its way."""
        if not self._sent:
            raise MalformedMessage("message", "no more parts taken than were sent")
        self._sent.popleft().wait(time.monotonic() + _TAKEN_S)

    def receive(
        self,
        cuts: Cuts,
        pool: Pool,
        digest: Digest,
        deadline: float,
        arrived: Callable[[int], None],
    ) -> None:
        """Return when all is in its place; `arrived` may raise to end it between two parts."""
        due = deque(self._expect(cuts, turn) for turn in range(min(_TURNS, len(cuts))))
        try:
            for turn in range(len(cuts)):
                pending, buffer = due.popleft()
                pending.wait(deadline)
                part = cuts[turn]
                arrived(part.nbytes)
                digest.take(pool, buffer)
                pool.scatter(part, buffer)
                if turn + _TURNS < len(cuts):
                    due.append(self._expect(cuts, turn + _TURNS))
        finally:
            pool.settle()

    def close(self) -> None:
        """The buffers go after the pipe, which may write into them until then."""
        self.pipe.close()
        self._sent.clear()
        self._buffers.clear()

    def _expect(self, cuts: Cuts, turn: int) -> tuple[Pending, Any]:
        buffer = self._next_buffer(cuts.size(turn))
        return self.pipe.receive(buffer), buffer

    def _next_buffer(self, nbytes: int) -> Any:
        """The buffers take turns, from one job to the next too."""
        self._buffers.reverse()
        return self._buffers[0][:nbytes]
