"""A pipe of gloo: a process group of two, made without torch's global one.

What torch 2.13 does, tried on Linux: `abort` wakes nobody, and `is_completed` says no until
somebody waits. But when an operation times out, gloo closes the pair's connection, for both sides,
and wakes those who wait for a message that has not begun. For the others see `waiter`. A group that
failed is of no use: the next job makes another one, which takes about 3 ms on one host.
"""

import time
from contextlib import suppress
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.transports.two_sided.board import Board
from stafette.kvtransfer.transports.two_sided.pipe import OWNER, READER, Pending, Pipe
from stafette.kvtransfer.transports.two_sided.waiter import Waiter, first_line

_PROBE_TAG = 99
_ONE_MS = timedelta(milliseconds=1)


class GlooPipe(Pipe):
    """`host` is the address of this machine at which the other side reaches it."""

    def __init__(self, board: Board, rank: int, host: str) -> None:
        self._torch = import_module("torch")
        self._peer = READER if rank == OWNER else OWNER
        self._turn = 0
        self._probe = self.buffer(1)
        self._store = _store_class()(board)  # gloo keeps only the half of it that is C++
        self._group = _make_group(self._store, rank, host, board.left_s())
        self._waiter = Waiter(self._group) if rank == READER else None

    def buffer(self, nbytes: int) -> Any:
        return self._torch.empty(nbytes, dtype=self._torch.uint8)

    def send(self, buffer: Any) -> Pending:
        return _Sent(self._post("send", buffer), buffer)

    def receive(self, buffer: Any) -> Pending:
        assert self._waiter is not None
        return self._waiter.expect(self._post("recv", buffer), buffer)

    def abort(self) -> None:
        if self._waiter is not None:
            self._waiter.end("the pipe was aborted")

    def close(self) -> None:
        """The group's own end closes its connections and joins its thread."""
        group, self._group = self._group, None
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.close():
            with suppress(RuntimeError):  # most often that ends the other wait too
                group.recv([self._probe], self._peer, _PROBE_TAG).wait(_ONE_MS)

    def _post(self, name: str, buffer: Any) -> Any:
        """Operations with one tag stay in order; two of them alternate with the buffers."""
        self._turn ^= 1
        try:
            return getattr(self._group, name)([buffer], self._peer, self._turn)
        except RuntimeError as error:
            raise ConnectionError(first_line(error)) from error


class _Sent(Pending):
    """Whoever waits knows that the peer has it: gloo's own wait returns at once then."""

    __slots__ = ("_work", "_buffer")  # given back in this order: gloo knows only an address

    def __init__(self, work: Any, buffer: Any) -> None:
        self._work = work
        self._buffer = buffer

    def wait(self, deadline: float) -> None:
        left_s = max(1e-3, deadline - time.monotonic())
        try:
            self._work.wait(timedelta(seconds=left_s))
        except RuntimeError as error:
            if time.monotonic() >= deadline:
                raise TimeoutError from error
            raise ConnectionError(first_line(error)) from error


def _make_group(store: Any, rank: int, host: str, timeout_s: float) -> Any:
    gloo = import_module("torch.distributed").ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._threads = 1
    options._timeout = timedelta(seconds=timeout_s)
    try:
        return gloo(store, rank, 2, options)
    except MalformedMessage:
        raise
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(f"no process group: {first_line(error)}") from error


@cache
def _store_class() -> Any:
    """Return torch's store over a board; made when torch is there."""
    base: Any = import_module("torch.distributed").Store

    class BoardStore(base):  # type: ignore[misc]
        def __init__(self, board: Board) -> None:
            super().__init__()
            self._board = board

        def set(self, key: str, value: str | bytes) -> None:
            self._board.set(key, value.encode() if isinstance(value, str) else bytes(value))

        def get(self, key: str) -> bytes:
            return self._board.get(key)

        def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
            self._board.wait(keys)

        def check(self, keys: list[str]) -> bool:
            return self._board.has(keys)

        def num_keys(self) -> int:
            return len(self._board)

    return BoardStore
