"""Doubles that keep the rules of the real things."""

import threading
import time

import numpy as np
import pytest
from hypothesis import settings

from stafette.kvtransfer.errors import PeerLost
from stafette.kvtransfer.transport import Capabilities, Link, ReadJob, Transport

PATIENCE_S = 30.0

# Random tests are judged by what they find, not by how long a busy machine takes for an example.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


class HandTransport(Transport):
    """Moves nothing by itself: a test lets each job that was started go on, or fail.

    Owner and reader are in one process; what was registered is found by the owner's name.
    """

    memory: dict[tuple[str, str], np.ndarray] = {}

    def __init__(self, name: str, surroundings, gb_per_s: float = 1.0) -> None:
        self.name = name
        host = frozenset({"host"})
        self.capabilities = Capabilities(host, host, True, 10.0, gb_per_s)
        self.links: list[HandLink] = []
        self.refusal = ""  # why no peer can be reached this way
        self.closed = False
        self._surroundings = surroundings

    def endpoint(self):
        return {"by": "hand"}

    def attach(self, region):
        self.memory[self._surroundings.name, region.name] = region.memory
        return None

    def detach(self, region):
        del self.memory[self._surroundings.name, region.name]

    def unreachable(self, peer, remote, local):
        return self.refusal

    def connect(self, peer, control):
        self.links.append(HandLink(self, peer))
        return self.links[-1]

    def close(self):
        self.closed = True

    @property
    def jobs(self) -> list[ReadJob]:
        """Jobs that were started and not finished, of all links."""
        return [job for link in self.links for job in link.jobs]

    def await_jobs(self, count: int) -> list[ReadJob]:
        deadline = threading.Event()
        for _ in range(int(PATIENCE_S * 200)):
            if len(self.jobs) >= count:
                return self.jobs
            deadline.wait(0.005)
        raise AssertionError(f"{len(self.jobs)} jobs, not {count}")


class HandLink(Link):
    def __init__(self, transport: HandTransport, peer) -> None:
        self.jobs: list[ReadJob] = []
        self.interrupted: list[ReadJob] = []
        self._transport = transport
        self._peer = peer

    def start(self, job):
        self.jobs.append(job)

    def interrupt(self, job):
        self.interrupted.append(job)

    def copy(self, job) -> None:
        """Do the job as a real transport would."""
        source = self._transport.memory[self._peer.name, job.source.region]
        for to, origin, length in zip(
            job.into.offsets, job.source.offsets, job.into.lengths, strict=True
        ):
            to, origin, length = int(to), int(origin), int(length)
            job.local.memory[to : to + length] = source[origin : origin + length]
            job.advance(length)
        self.finish(job)

    def finish(self, job, error=None) -> None:
        self.jobs.remove(job)
        job.finish(error)

    def close(self):
        for job in list(self.jobs):
            self.finish(job, PeerLost(self._peer.name, "the link was closed"))


@pytest.fixture(scope="session")
def hand_transport() -> type[HandTransport]:
    return HandTransport


@pytest.fixture(scope="session")
def eventually():
    """Wait for what nothing announces."""

    def wait(condition) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait
