"""What ranks say to each other, over a real socket pair."""

import dataclasses
import socket
import struct
import threading

import numpy as np
import pytest

from stafette.workers.runner.link import Link, pack_inputs, unpack_inputs
from stafette.workers.runner.runner import StepInputs


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    yield Link(ours), theirs
    ours.close()
    theirs.close()


def ints(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize("lora_slots", [None, ints(-1, 2)])
@pytest.mark.parametrize("hidden_rows", [ints(), ints(1)])
def test_a_step_arrives_as_it_was_sent(ends, lora_slots, hidden_rows):
    link, other = ends
    inputs = StepInputs(
        token_ids=ints(7, 8, 9),
        positions=ints(0, 1, 40),
        query_starts=ints(0, 2, 3),
        context_lens=ints(2, 41),
        block_tables=ints(5, 0, 0, 1, 2, 3).reshape(2, 3),
        logit_rows=ints(1, 2),
        lora_slots=lora_slots,
        hidden_rows=hidden_rows,
    )

    link.send(pack_inputs(inputs))
    arrived = unpack_inputs(Link(other).receive(5))

    for field in dataclasses.fields(StepInputs):
        sent, got = getattr(inputs, field.name), getattr(arrived, field.name)
        assert (got is None) if sent is None else np.array_equal(sent, got)


def test_a_message_larger_than_the_socket_holds_arrives_whole(ends):
    link, other = ends
    message = {"bytes": bytes(5_000_000)}

    sender = threading.Thread(target=link.send, args=(message,))
    sender.start()
    arrived = Link(other).receive(20)
    sender.join()

    assert arrived == message


def test_silence_ends_at_the_deadline(ends):
    link, _ = ends

    with pytest.raises(TimeoutError):
        link.receive(0.01)


def test_an_end_that_closes_is_an_end_of_file(ends):
    link, other = ends
    other.sendall(b"half")
    other.close()

    with pytest.raises(EOFError):
        link.receive(5)
    with pytest.raises(EOFError):
        link.send({"op": "close"})


def test_a_length_that_no_message_has_is_refused_unread(ends):
    link, other = ends
    other.sendall(struct.pack("<Q", 1 << 40))

    with pytest.raises(EOFError, match="1099511627776 bytes"):
        link.receive(5)
