"""Two ends of a TCP connection, and an owner's gate that keeps the rules."""

import contextlib
import socket

import pytest

from stafette.kvtransfer.errors import LeaseEnded


@pytest.fixture
def tcp_pair():
    opened = []

    def pair():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        opened.extend([ours, theirs])
        return ours, theirs

    yield pair
    for each in opened:
        each.close()


class FakeGate:
    """Knows which leases live, who asked, and how many claims are held."""

    def __init__(self) -> None:
        self.living = {7}
        self.asked = []
        self.held = 0
        self.at_the_end = None  # what the check finds

    @contextlib.contextmanager
    def claim(self, peer, lease_id, extents):
        self.asked.append((peer, lease_id, extents.region))
        if lease_id not in self.living:
            raise LeaseEnded(lease_id, "it expired")
        self.held += 1
        try:
            yield self
        finally:
            self.held -= 1

    def check(self):
        if self.at_the_end is not None:
            raise self.at_the_end


@pytest.fixture
def gate() -> FakeGate:
    return FakeGate()
