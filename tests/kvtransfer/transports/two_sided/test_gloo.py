"""A pipe of gloo, both ends in threads of this process."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.transports.two_sided.board import Board
from stafette.kvtransfer.transports.two_sided.gloo import GlooPipe
from stafette.kvtransfer.transports.two_sided.pipe import OWNER, READER

PATIENCE_S = 10.0
MIB = 1 << 20


def soon(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def make_pipes(talks):
    made = []

    def make() -> tuple[GlooPipe, GlooPipe]:
        ends = zip(talks(), (OWNER, READER), strict=True)
        with ThreadPoolExecutor(2) as executor:
            futures = [
                executor.submit(GlooPipe, Board(talk, soon()), rank, talk.local_host)
                for talk, rank in ends
            ]
            pipes = tuple(future.result() for future in futures)
        made.extend(pipes)
        return pipes

    yield make
    for pipe in made:
        pipe.close()


def filled(pipe, nbytes: int, value: int):
    buffer = pipe.buffer(nbytes)
    buffer.fill_(value)
    return buffer


def test_buffers_arrive_in_the_order_in_which_they_were_sent(make_pipes):
    owner, reader = make_pipes()
    into = [reader.buffer(MIB) for _ in range(4)]

    expected = [reader.receive(buffer) for buffer in into]
    sent = [owner.send(filled(owner, MIB, value)) for value in range(1, 5)]
    for pending in [*expected, *sent]:
        pending.wait(soon())

    assert [int(buffer.min()) for buffer in into] == [1, 2, 3, 4]
    assert [int(buffer.max()) for buffer in into] == [1, 2, 3, 4]


def test_abort_wakes_who_receives(make_pipes):
    _, reader = make_pipes()
    pending, told = reader.receive(reader.buffer(MIB)), []
    waiting = threading.Thread(target=lambda: told.append(lost(pending)))
    waiting.start()
    time.sleep(0.05)

    reader.abort()

    waiting.join(PATIENCE_S)
    assert told == [True]


def lost(pending) -> bool:
    with pytest.raises(ConnectionError):
        pending.wait(soon())
    return True


def test_pipe_closed_in_the_middle_of_a_wait_leaves_no_thread_and_the_other_side_knows(make_pipes):
    owner, reader = make_pipes()
    reader.receive(reader.buffer(MIB))
    time.sleep(0.05)  # its thread waits now

    reader.close()

    deadline = soon()
    while any(thread.name == "reading-gloo" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
    with pytest.raises(ConnectionError):
        owner.send(owner.buffer(64 * MIB)).wait(soon())


def test_nothing_sent_is_a_timeout_at_the_deadline(make_pipes):
    _, reader = make_pipes()
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        reader.receive(reader.buffer(1)).wait(soon(0.1))

    assert time.monotonic() - began >= 0.1


def test_pipe_after_an_aborted_one_works(make_pipes):
    for _ in range(3):
        owner, reader = make_pipes()
        buffer = reader.buffer(8)
        pending = reader.receive(buffer)
        owner.send(filled(owner, 8, 9)).wait(soon())
        pending.wait(soon())
        assert buffer.tolist() == [9] * 8
        reader.abort()
        reader.close()
        owner.close()
        reader.abort()  # whoever comes too late does no harm


def test_peer_that_makes_no_end_of_its_own_is_a_timeout(talks):
    talk, _ = talks()

    with pytest.raises(TimeoutError):
        GlooPipe(Board(talk, soon(0.1)), READER, talk.local_host)


def test_peer_that_leaves_while_the_pipe_is_made_is_noticed_at_once(talks):
    talk, other = talks()
    other.close()

    with pytest.raises(ConnectionError):
        GlooPipe(Board(talk, soon(60.0)), READER, talk.local_host)


def test_peer_that_tells_nonsense_of_itself_makes_no_pipe(talks):
    talk, other = talks()
    other.say("put", "0/0", b"no address of gloo")

    with pytest.raises((ConnectionError, TimeoutError)):
        GlooPipe(Board(talk, soon(1.0)), READER, talk.local_host)


@pytest.mark.parametrize(
    "message", [["put", "k", b""], ["put", 1, b"v"], ["read", "k", b"v"], ["put", "k" * 257, b"v"]]
)
def test_what_is_no_note_of_a_board_is_malformed(talks, message):
    talk, other = talks()
    other.say(*message)

    with pytest.raises(MalformedMessage):
        Board(talk, soon()).get("k")


def test_board_does_not_grow_without_end(talks):
    talk, other = talks()
    for number in range(65):
        other.say("put", f"{number}", b"v")

    with pytest.raises(MalformedMessage):
        Board(talk, soon()).get("never")


def test_groups_of_two_leave_torchs_global_group_alone(make_pipes):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        owner, reader = make_pipes()
        pending = reader.receive(reader.buffer(8))
        reader.abort()
        assert lost(pending)
        reader.close()
        owner.close()

        ones = torch.ones(3)
        torch.distributed.all_reduce(ones)
        assert ones.tolist() == [1.0] * 3
    finally:
        torch.distributed.destroy_process_group()
