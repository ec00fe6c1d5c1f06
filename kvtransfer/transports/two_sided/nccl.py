"""A pipe of NCCL between two GPUs. Its logic is tested with a double; was not run on GPUs."""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from stafette.kvtransfer.transports.two_sided.board import Board
from stafette.kvtransfer.transports.two_sided.nccl_library import Nccl, NcclError
from stafette.kvtransfer.transports.two_sided.pipe import OWNER, READER, Pending, Pipe

_POLL_S = 20e-6
_ID = "nccl-id"


class Device(Protocol):
    """One GPU. As a context it is the current one."""

    handle: int  # of the stream on which NCCL works

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def buffer(self, nbytes: int) -> Any: ...

    def follow(self) -> None:
        """Let NCCL's stream wait for what was packed, or unpacked, so far."""

    def mark(self) -> Callable[[], bool]:
        """Return what says whether everything on NCCL's stream so far is done."""

    def settle(self) -> None:
        """Return when nothing runs on NCCL's stream."""


class NcclPipe(Pipe):
    """Its thread never waits inside of NCCL; so nobody else needs to touch the communicator."""

    def __init__(self, nccl: Nccl, board: Board, rank: int, device: Device) -> None:
        self._nccl = nccl
        self._peer = READER if rank == OWNER else OWNER
        self._device = device
        self._aborted = False
        if rank == OWNER:
            board.set(_ID, nccl.unique_id())
        with device:
            self._comm = nccl.start(board.get(_ID), rank)
        try:
            self._await(lambda: True, time.monotonic() + board.left_s())
        except BaseException:
            self.close()
            raise

    def buffer(self, nbytes: int) -> Any:
        return self._device.buffer(nbytes)

    def send(self, buffer: Any) -> Pending:
        return self._post(self._nccl.send, buffer)

    def receive(self, buffer: Any) -> Pending:
        return self._post(self._nccl.receive, buffer)

    def abort(self) -> None:
        """The pipe's own thread sees it within a moment, and then closes the pipe."""
        self._aborted = True

    def close(self) -> None:
        """Kernels that wait for the peer return; the buffers are free when they have."""
        self._aborted = True
        comm, self._comm = self._comm, 0
        if comm:
            with self._device:
                self._nccl.abort(comm)
                self._device.settle()

    def _post(self, operation: Callable[[int, int, int, int, int], None], buffer: Any) -> Pending:
        self._check()
        with self._device:
            self._device.follow()
            address, nbytes = buffer.data_ptr(), buffer.numel()
            operation(address, nbytes, self._peer, self._comm, self._device.handle)
            return _Marked(self, self._device.mark())

    def _await(self, done: Callable[[], bool], deadline: float) -> None:
        """Return when NCCL has taken the last call, and what was asked for is done."""
        while True:
            self._check()
            if self._nccl.ready(self._comm) and done():
                return
            if time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(_POLL_S)

    def _check(self) -> None:
        if self._aborted:
            raise NcclError("NCCL: the pipe was aborted")


class _Marked(Pending):
    __slots__ = ("_pipe", "_done")

    def __init__(self, pipe: NcclPipe, done: Callable[[], bool]) -> None:
        self._pipe = pipe
        self._done = done

    def wait(self, deadline: float) -> None:
        self._pipe._await(self._done, deadline)


class CudaDevice(Device):
    def __init__(self, index: int, packing: Any) -> None:
        """`packing` is the stream of the pool."""
        torch = import_module("torch")
        self._torch = torch
        self._device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self._device)
        self._packing = packing
        self._outer: list[Any] = []
        self.handle = int(self._stream.cuda_stream)

    def __enter__(self) -> object:
        self._outer.append(self._torch.cuda.device(self._device))
        return self._outer[-1].__enter__()

    def __exit__(self, *error: object) -> None:
        self._outer.pop().__exit__(*error)

    def buffer(self, nbytes: int) -> Any:
        return self._torch.empty(nbytes, dtype=self._torch.uint8, device=self._device)

    def follow(self) -> None:
        self._stream.wait_stream(self._packing)

    def mark(self) -> Callable[[], bool]:
        query: Callable[[], bool] = self._stream.record_event().query
        return query

    def settle(self) -> None:
        self._stream.synchronize()
