"""Small requests on a connection, answered by native code; Python sees only the others.

A lease is answered for from its second request in a row on, for most are asked for once or in
large pieces. Its owner's table tells when it ends: then nothing of it is read any more, natively
either, before whoever ended it goes on.
"""

import threading
from functools import partial

from stafette.kvtransfer.native.answering import Desk
from stafette.kvtransfer.native.moving import Source, pack_source, pack_target
from stafette.kvtransfer.transport import Claim, Gate
from stafette.kvtransfer.transports.tcp_counters import TcpTally
from stafette.kvtransfer.transports.tcp_frames import Request

AT_ONCE_BYTES = 16 << 10  # so much is copied, to be sent in one call with what closes the job
_MOST_PROMISES = 16  # of one connection: each is looked for in turn
_NO_PROCESS = -1, 0, 0, 0  # of memory that is our own


class OwnerDesk:
    """`serve` and `seen` are for the connection's thread."""

    def __init__(self, gate: Gate, tally: TcpTally) -> None:
        self._gate = gate
        self._desk = Desk(AT_ONCE_BYTES, tally.native)
        self._promised: dict[int, Claim] = {}  # whose memory it reads; the oldest comes first
        self._last_lease = 0
        self._lock = threading.Lock()

    def serve(self, fd: int, stall_s: float) -> bytes:
        """Return what has come and is for Python, nothing at the end."""
        return self._desk.serve(fd, stall_s)

    def seen(self, request: Request, claim: Claim) -> None:
        """Python has let a request in: perhaps it is the last one of that lease which needs it."""
        again = request.lease_id == self._last_lease
        self._last_lease = request.lease_id
        small = request.source.total_bytes <= AT_ONCE_BYTES
        if again and small and claim.region.memory is not None:
            self._promise(request, claim)

    def close(self) -> None:
        with self._lock:
            self._promised.clear()
            self._desk.close()

    def _promise(self, request: Request, claim: Claim) -> None:
        words, region, lease_id = claim.words(), claim.region, request.lease_id
        if words is None or lease_id in self._promised:
            return
        if len(self._promised) >= _MOST_PROMISES:
            self._drop(next(iter(self._promised)))
        place = Source.MEMORY, region.address, region.info.nbytes, *_NO_PROCESS
        job = pack_source(words, place) + pack_target(0, 0, 0)  # the desk knows its own memory
        with self._lock:
            self._promised[lease_id] = claim
            self._desk.promise(job, region.info.generation, region.name)
        self._gate.when_ending(claim, partial(self._drop, lease_id))

    def _drop(self, lease_id: int) -> None:
        with self._lock:
            if self._promised.pop(lease_id, None) is not None:
                self._desk.drop(lease_id)
