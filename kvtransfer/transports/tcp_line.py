"""A connection to an owner, and the bells that wake the threads at it."""

import os
from contextlib import ExitStack, suppress

from stafette.kvtransfer.transports.tcp_way import Way
from stafette.kvtransfer.transports.tcp_wire import wire_of


class Bell:
    """An eventfd: readable from the first ring until it is stopped."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)

    def stop(self) -> None:
        with suppress(BlockingIOError):  # it does not ring
            os.eventfd_read(self.fd)

    def close(self) -> None:
        os.close(self.fd)


class Line:
    def __init__(self, way: Way, timeout_s: float) -> None:
        """Dial; TransferError or OSError when there is no connection."""
        with ExitStack() as undo:
            self.wake = Bell()  # for whoever receives
            undo.callback(self.wake.close)
            self.call = Bell()  # for the session's own thread, whoever receives
            undo.callback(self.call.close)
            connection = way.control.dial("tcp", timeout_s)
            undo.pop_all()
        self.wire = wire_of(connection, way.config.native, self.wake.fd)
        way.tally.count("dialled")

    def close(self) -> None:
        self.wire.close()
        self.wake.close()
        self.call.close()
