"""A connection to an owner, and the bells that wake the threads at it."""

import os
import select
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
    """`alarm` wakes the session's own thread, when the wire has something or a bell rings."""

    def __init__(self, way: Way, timeout_s: float) -> None:
        """Dial; TransferError or OSError when there is no connection."""
        with ExitStack() as undo:
            self.wake = Bell()  # for whoever receives
            undo.callback(self.wake.close)
            self.call = Bell()  # for the session's own thread, whoever receives
            undo.callback(self.call.close)
            self.alarm = undo.enter_context(select.epoll())
            connection = way.control.dial("tcp", timeout_s)
            undo.pop_all()
        self.wire = wire_of(connection, way.config.native, self.wake.fd)
        self.alarm.register(self.wire.fd, select.EPOLLIN)
        self.alarm.register(self.call.fd, select.EPOLLIN)
        # At its edge: when a lent thread receives, it is that one who answers, and stops it.
        self.alarm.register(self.wake.fd, select.EPOLLIN | select.EPOLLET)
        way.tally.count("dialled")

    def arm(self, data_wakes: bool) -> None:
        """Let what comes on the wire wake the session's own thread, or not."""
        self.alarm.modify(self.wire.fd, select.EPOLLIN if data_wakes else 0)

    def await_call(self, timeout_s: float | None) -> bool:
        """Wait for anything; return whether the session's own thread is called by its bell."""
        rung = self.alarm.poll(timeout_s)
        called = any(fd == self.call.fd for fd, _ in rung)
        if called:
            self.call.stop()
        return called

    def close(self) -> None:
        self.alarm.close()
        self.wire.close()
        self.wake.close()
        self.call.close()
