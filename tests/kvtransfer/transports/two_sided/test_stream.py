"""A job through a pipe: what is under way while what is packed, and what an early end leaves."""

import numpy as np
import pytest
import torch

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transports.cuts import Cuts
from stafette.kvtransfer.transports.two_sided.pipe import Pending, Pipe
from stafette.kvtransfer.transports.two_sided.pools import HostPool
from stafette.kvtransfer.transports.two_sided.stream import Digest, Stream

PART = 16


class LoggingPool(HostPool):
    def __init__(self, memory, log) -> None:
        super().__init__(memory)
        self.log = log

    def gather(self, part, buffer):
        self.log.append("pack")
        super().gather(part, buffer)

    def scatter(self, part, buffer):
        self.log.append("unpack")
        super().scatter(part, buffer)

    def settle(self):
        self.log.append("settle")


class LoggingPipe(Pipe):
    """Sends into a list, receives from one; `spoil` changes a byte on the way."""

    def __init__(self, log, carried=None, spoil=None) -> None:
        self.log = log
        self.carried = [] if carried is None else carried
        self.spoil = spoil
        self.closed = False
        self.received = 0

    def buffer(self, nbytes):
        return torch.zeros(nbytes, dtype=torch.uint8)

    def send(self, buffer):
        self.log.append("send")
        self.carried.append(buffer.clone())
        return _Logged(self.log, "sent")

    def receive(self, buffer):
        self.log.append("expect")
        number, self.received = self.received, self.received + 1

        def arrive():
            buffer.copy_(self.carried[number])
            if number == self.spoil:
                buffer[3] ^= 1

        return _Logged(self.log, "came", arrive)

    def abort(self): ...

    def close(self):
        self.closed = True


class _Logged(Pending):
    def __init__(self, log, name, arrive=lambda: None) -> None:
        self.log, self.name, self.arrive = log, name, arrive

    def wait(self, deadline):
        self.log.append(self.name)
        self.arrive()


def cuts(nbytes: int) -> Cuts:
    return Cuts(Extents.of("pool", [(0, nbytes)]), PART)


def through(nbytes: int, verify=False, spoil=None):
    """Return (sender's log, receiver's log, both digests, both memories)."""
    source = np.arange(1, nbytes + 1, dtype=np.uint8)
    into = np.zeros(nbytes, np.uint8)
    sending, receiving = LoggingPipe([]), LoggingPipe([], spoil=spoil)
    receiving.carried = sending.carried
    digests = Digest(verify), Digest(verify)
    sender = Stream(sending, PART)

    def hear_taken():
        sending.log.append("hear")
        sender.took()

    sender.send(cuts(nbytes), LoggingPool(source, sending.log), digests[0], hear_taken)
    there, arrived = LoggingPool(into, receiving.log), receiving.log.append
    Stream(receiving, PART).receive(cuts(nbytes), there, digests[1], 0.0, arrived)
    return sending.log, receiving.log, [d.value() for d in digests], (source, into)


def test_next_part_is_packed_while_one_is_sent():
    log = through(4 * PART)[0]

    assert log == [
        *("pack", "send", "pack", "send"),
        *("hear", "sent", "pack", "send"),
        *("hear", "sent", "pack", "send"),
    ]


def test_next_part_is_expected_before_one_is_unpacked():
    log = through(3 * PART)[1]

    assert log == [
        *("expect", "expect", "came", PART, "unpack", "expect"),
        *("came", PART, "unpack", "came", PART, "unpack", "settle"),
    ]


@pytest.mark.parametrize("nbytes", [1, PART - 1, PART, PART + 1, 5 * PART + 3])
def test_everything_arrives(nbytes):
    source, into = through(nbytes)[3]

    assert np.array_equal(source, into)


def test_digests_agree_unless_a_byte_changed_on_the_way():
    same, spoiled = through(3 * PART, verify=True)[2], through(3 * PART, verify=True, spoil=2)[2]

    assert same[0] == same[1] != 0
    assert spoiled[0] != spoiled[1]
    assert through(PART)[2] == [0, 0]


def test_job_that_is_stopped_unpacks_nothing_more_and_waits_for_what_it_began():
    log = []
    carried = [torch.ones(PART, dtype=torch.uint8)] * 3
    into = np.zeros(3 * PART, np.uint8)
    arrivals = []

    def arrived(nbytes):
        arrivals.append(nbytes)
        if len(arrivals) == 2:
            raise TimeoutError

    stream = Stream(LoggingPipe(log, carried), PART)
    with pytest.raises(TimeoutError):
        stream.receive(cuts(3 * PART), LoggingPool(into, log), Digest(False), 0.0, arrived)

    assert log[-1] == "settle"
    assert into.tolist() == [1] * PART + [0] * 2 * PART


def test_buffer_is_not_packed_anew_before_the_reader_has_got_it_in_the_next_job_too():
    pipe = LoggingPipe([])
    stream = Stream(pipe, PART)
    pool = LoggingPool(np.zeros(64, np.uint8), pipe.log)
    nobody = pytest.fail

    stream.send(cuts(2 * PART), pool, Digest(False), nobody)  # both are on their way
    stream.took()
    stream.send(cuts(PART), pool, Digest(False), nobody)
    with pytest.raises(RuntimeError, match="not yet"):
        stream.send(cuts(PART), pool, Digest(False), not_yet)


def not_yet():
    raise RuntimeError("not yet")


def test_reader_that_took_more_than_was_sent_breaks_the_protocol():
    stream = Stream(LoggingPipe([]), PART)
    stream.send(cuts(PART), LoggingPool(np.zeros(64, np.uint8), []), Digest(False), pytest.fail)
    stream.took()

    with pytest.raises(MalformedMessage):
        stream.took()


def test_closed_stream_closes_its_pipe():
    pipe = LoggingPipe([])

    Stream(pipe, PART).close()

    assert pipe.closed
