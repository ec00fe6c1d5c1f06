"""Questions and answers: each caller gets its own, in time, and only typed errors come back."""

import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stafette.kvtransfer.control import frames
from stafette.kvtransfer.control.server import SlowOperation
from stafette.kvtransfer.errors import (
    AccessDenied,
    InvalidValue,
    LeaseEnded,
    PeerLost,
    StaleBlocks,
    TransferError,
    TransferTimedOut,
)

BOTH_WAYS = pytest.mark.parametrize("host_id", ["this host", "another host"])  # Unix, TCP


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@BOTH_WAYS
def test_an_answer_comes_back_and_the_operation_knows_who_asked(start_owner, reach, host_id):
    owner = start_owner()
    client = reach(owner, host_id=host_id)

    assert client.call("who", None, 10) == ["reader", 3]
    assert client.call("echo", {"a": [1, b"2", None, 3.5]}, 10) == {"a": [1, b"2", None, 3.5]}
    assert (owner.counters().connections, client.counters().connections) == (1, 1)
    assert owner.counters().calls == {"who": 1, "echo": 1}
    (peer,) = owner.peers
    assert (peer.peer.name, peer.metadata) == ("reader", b"the reader's metadata")


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_an_owner_may_listen_on_ipv6(start_owner, reach):
    assert reach(start_owner(host="::1"), host_id="elsewhere").call("echo", 1, 10) == 1


@BOTH_WAYS
@pytest.mark.parametrize("num_clients", [1, 4])
def test_many_threads_get_their_own_answers(start_owner, reach, host_id, num_clients):
    owner = start_owner()
    clients = [reach(owner, name=f"r{i}", host_id=host_id) for i in range(num_clients)]

    def ask(number: int) -> bool:
        client = clients[number % num_clients]
        own = [[number, i, b"x" * (i * 97)] for i in range(60)]
        return all(client.call("echo", each, 20) == each for each in own)

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(12)))
    assert owner.counters().connections == num_clients


@BOTH_WAYS
def test_answers_in_any_order_find_their_callers(start_owner, reach, host_id):
    client = reach(start_owner(), host_id=host_id)
    naps = [0.03, 0.0, 0.02, 0.01] * 6

    def ask(place: int) -> bool:
        client.call("nap", naps[place], 20)
        return client.call("echo", place, 20) == place

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(len(naps))))


def test_an_operation_that_waits_holds_up_no_quick_one(start_owner, reach):
    owner = start_owner()
    client = reach(owner)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.call, "held up", "slow", 20)
        owner.entered.acquire()
        assert client.call("echo", "quick", 20) == "quick"
        owner.gate.set()
        assert slow.result() == "slow"


def test_an_answer_can_come_from_another_thread_later(start_owner, reach):
    owner = start_owner()
    client = reach(owner)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.call, "later", None, 20)
        assert client.call("echo", 1, 20) == 1
        owner.later.set_result(["now"])
        assert asked.result() == ["now"]


def test_too_many_slow_calls_of_one_peer_are_refused(start_owner, reach):
    owner = start_owner(max_slow_calls=2)
    client, other = reach(owner), reach(owner, name="other")

    with ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(client.call, "held up", i, 20) for i in range(2)]
        for _ in slow:
            owner.entered.acquire()
        with pytest.raises(AccessDenied, match="2 slow calls are under way"):
            client.call("held up", None, 20)
        with pytest.raises(AccessDenied, match="2 slow calls are under way"):
            client.call("later", None, 20)
        third = pool.submit(other.call, "held up", 2, 20)
        owner.entered.acquire()
        owner.gate.set()
        assert [each.result() for each in (*slow, third)] == [0, 1, 2]
    assert client.call("held up", "again", 20) == "again"


def test_a_call_past_its_deadline_times_out_and_its_late_answer_does_no_harm(
    start_owner, reach, eventually
):
    owner = start_owner()
    client = reach(owner)

    client.connect(10)

    with pytest.raises(TransferTimedOut, match="held up with peer owner took longer than"):
        client.call("held up", "late", 0.05)
    owner.gate.set()

    assert client.call("echo", "next", 20) == "next"
    eventually(lambda: client._calls._owed == 0)
    assert (owner.counters().connections, owner.counters().errors) == (1, {})


def test_a_large_late_answer_costs_neither_the_connection_nor_the_owners_thread(
    start_owner, reach, eventually
):
    lost, released = [], threading.Event()

    def large(peer, payload):
        released.wait(20)
        return bytes(4 << 20)  # far more than the kernel keeps

    owner = start_owner(operations={"large": SlowOperation(large)}, send_timeout_s=2.0)
    client = reach(owner, on_lost=lost.append)
    client.connect(10)
    for _ in range(3):
        with pytest.raises(TransferTimedOut):
            client.call("large", None, 0.02)
    assert client._calls._owed == 3

    released.set()

    eventually(lambda: client._calls._owed == 0)  # all is read, though nobody asks for anything
    assert client.call("echo", 1, 20) == 1
    assert (lost, owner.counters().connections) == ([], 1)


def test_callers_are_answered_while_late_answers_are_still_to_come(start_owner, reach, eventually):
    owner = start_owner()
    client = reach(owner)
    client.connect(10)
    with pytest.raises(TransferTimedOut):
        client.call("held up", None, 0.02)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: client.call("echo", i, 20), range(200))) == list(range(200))

    owner.gate.set()
    eventually(lambda: client._calls._owed == 0)


@pytest.mark.parametrize("timeout_s", [0, -1.5])
def test_a_caller_whose_time_is_over_asks_nothing(start_owner, reach, timeout_s):
    owner = start_owner()

    with pytest.raises(TransferTimedOut):
        reach(owner).call("echo", 1, timeout_s)

    assert owner.counters().connections == 0


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf"), 1e7])
def test_a_wait_without_end_is_refused(start_owner, reach, timeout_s):
    with pytest.raises(InvalidValue, match="timeout_s = .*must be at most"):
        reach(start_owner()).call("echo", 1, timeout_s)


def test_typed_errors_cross_as_their_class(start_owner, reach):
    def expire(peer, payload):
        raise LeaseEnded(9, "expired")

    def stale(peer, payload):
        raise StaleBlocks("owner", "kv", tuple(np.arange(3)))

    def refuse(peer, payload):
        raise InvalidValue("blocks", 1 << 70, "must be less")

    operations = {"expire": SlowOperation(expire), "stale": stale, "refuse": refuse}
    owner = start_owner(operations=operations)
    client = reach(owner)

    with pytest.raises(LeaseEnded) as lease:
        client.call("expire", None, 20)
    with pytest.raises(StaleBlocks) as blocks:
        client.call("stale", None, 20)
    with pytest.raises(InvalidValue, match="must be less"):
        client.call("refuse", None, 20)

    assert lease.value.args == (9, "expired")
    assert blocks.value.blocks == (0, 1, 2)
    assert owner.counters().errors == {"LeaseEnded": 1, "StaleBlocks": 1, "InvalidValue": 1}
    assert owner.counters().failures == 0


@pytest.mark.parametrize("slow", [False, True])
def test_an_exception_that_nobody_foresaw_is_logged_there_and_tells_no_details(
    start_owner, reach, caplog, slow
):
    def fail(peer, payload):
        raise RuntimeError("a secret")

    owner = start_owner(operations={"fail": SlowOperation(fail) if slow else fail})
    client = reach(owner)

    with pytest.raises(TransferError) as caught:
        client.call("fail", None, 20)

    assert type(caught.value) is TransferError
    assert str(caught.value) == "fail failed at peer owner, whose log says why"
    assert "a secret" in caplog.text
    assert owner.counters().failures == 1
    assert client.call("echo", 1, 20) == 1


def test_a_future_that_is_cancelled_or_fails_is_an_error_of_the_peer(start_owner, reach):
    owner = start_owner()
    owner.later.cancel()

    with pytest.raises(TransferError, match="later failed at peer owner"):
        reach(owner).call("later", None, 20)


def test_an_unknown_operation_is_refused_by_name(start_owner, reach):
    owner = start_owner()

    with pytest.raises(AccessDenied, match="peer owner refuses dance: it has no such operation"):
        reach(owner).call("dance", None, 20)

    assert owner.counters().calls == {}  # strangers' names are not kept


@pytest.mark.parametrize("answer", [bytes(70_000), object(), 1 << 64])
def test_an_answer_that_cannot_be_sent_is_an_error_and_the_connection_goes_on(
    start_owner, reach, caplog, answer
):
    owner = start_owner(operations={"ask": lambda peer, payload: answer}, max_frame_bytes=65_536)
    client = reach(owner, max_frame_bytes=65_536)

    with pytest.raises(TransferError, match="ask failed at peer owner"):
        client.call("ask", None, 20)

    assert "no answer of ask can be sent" in caplog.text
    assert client.call("echo", 1, 20) == 1


@pytest.mark.parametrize(
    ("operation", "payload", "field"),
    [
        ("echo", bytes(70_000), "payload"),
        ("echo", object(), "payload"),
        ("", 1, "operation"),
        ("x" * 129, 1, "operation"),
    ],
)
def test_a_question_that_cannot_be_asked_is_the_callers_mistake(
    start_owner, reach, operation, payload, field
):
    client = reach(start_owner(max_frame_bytes=65_536), max_frame_bytes=65_536)

    with pytest.raises(InvalidValue) as caught:
        client.call(operation, payload, 20)

    assert caught.value.field == field
    assert client.call("echo", 1, 20) == 1


def test_messages_near_the_limit_go_both_ways(start_owner, reach):
    client = reach(start_owner(), host_id="elsewhere")
    payload = bytes(range(256)) * (100 << 10)

    assert client.call("echo", payload, 20) == payload


def test_a_peer_that_takes_no_answers_loses_its_connection_and_nobody_else_does(
    start_owner, reach, eventually, caplog
):
    caplog.set_level(logging.INFO)
    owner = start_owner(
        operations={"large": lambda peer, payload: bytes(20 << 20)}, send_timeout_s=0.1
    )
    deaf, other = reach(owner), reach(owner, name="other")
    deaf.connect(10)
    # The frame goes out, and nobody reads: not even the thread for late answers.
    deaf._calls._channel.send(frames.encode([0, "large", None, False], 1_000), 1e9)

    assert other.call("echo", 1, 20) == 1
    eventually(lambda: "it does not read" in caplog.text)
    with pytest.raises(PeerLost):
        deaf._calls.call("echo", 1, False, 20)
