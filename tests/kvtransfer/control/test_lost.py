"""Peers that die, stop or leave, and ends of a connection in the middle of calls."""

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stafette.kvtransfer.control import frames
from stafette.kvtransfer.control.server import SlowOperation
from stafette.kvtransfer.errors import AuthFailed, PeerLost, StaleEpoch, TransferTimedOut
from stafette.kvtransfer.transport import PeerInfo

BOTH_WAYS = pytest.mark.parametrize("host_id", ["this host", "another host"])  # Unix, TCP


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@BOTH_WAYS
def test_a_killed_peer_is_lost_at_once_for_all_its_callers(
    start_process, reach, eventually, host_id
):
    process, lost = start_process(), []
    client = reach(process, host_id=host_id, on_lost=lost.append)
    client.connect(10)

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.call, "nap", 60, 60) for _ in range(4)]
        eventually(lambda: len(client._calls._waiting) == 4)
        os.kill(process.process.pid, signal.SIGKILL)
        errors = [each.exception() for each in calls]

    assert {type(error) for error in errors} == {PeerLost}  # none of them waited for its deadline
    eventually(lambda: lost == [process.info])
    with pytest.raises(PeerLost):
        client.call("echo", 1, 10)
    assert lost == [process.info]


@BOTH_WAYS
def test_a_peer_that_dies_while_nobody_calls_is_noticed(start_process, reach, eventually, host_id):
    process, lost = start_process(), []
    client = reach(process, host_id=host_id, on_lost=lost.append)
    assert client.call("echo", 1, 10) == 1

    os.kill(process.process.pid, signal.SIGKILL)

    eventually(lambda: lost == [process.info])


def test_a_peer_that_ends_itself_in_the_middle_of_an_answer_is_lost(start_process, reach):
    client = reach(start_process())

    with pytest.raises(PeerLost):
        client.call("exit", 0, 60)


@BOTH_WAYS
def test_a_stopped_peer_costs_a_caller_its_deadline_and_comes_back(
    start_process, reach, eventually, host_id
):
    process, lost = start_process(), []
    client = reach(process, host_id=host_id, on_lost=lost.append)
    client.connect(10)

    process.stop()
    for _ in range(3):
        with pytest.raises(TransferTimedOut):
            client.call("echo", "nobody waits for this", 0.05)
    process.go_on()

    assert client.call("echo", "again", 20) == "again"
    eventually(lambda: client._calls._owed == 0)
    assert lost == []


def test_a_stopped_peer_that_takes_nothing_in_costs_a_sender_its_deadline(
    start_process, reach, eventually
):
    process = start_process()
    client = reach(process, host_id="another host")
    client.connect(10)

    process.stop()
    with pytest.raises(TransferTimedOut):
        client.call("echo", bytes(30 << 20), 0.1)  # more than the kernel takes
    process.go_on()

    # It was sent in part, so that connection is over; the next call makes another one.
    with pytest.raises(PeerLost, match="a message to it was sent only in part"):
        client._calls.call("echo", 1, False, 20)
    eventually(lambda: client._calls.lost)
    assert client.call("echo", 1, 20) == 1


def test_a_stopped_peer_costs_who_connects_the_deadline(start_process, reach):
    process = start_process()
    process.stop()
    client = reach(process, host_id="another host")

    with pytest.raises(TransferTimedOut, match="connecting with peer owner"):
        client.call("echo", 1, 0.1)

    process.go_on()


@BOTH_WAYS
def test_an_owner_that_closes_in_the_middle_of_calls_ends_them(
    start_owner, reach, eventually, host_id
):
    owner, lost = start_owner(), []
    client = reach(owner, host_id=host_id, on_lost=lost.append)

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.call, "held up", i, 60) for i in range(4)]
        for _ in calls:
            owner.entered.acquire()
        closing = threading.Thread(target=owner.server.close)
        closing.start()
        errors = [each.exception() for each in calls]
        owner.gate.set()
        closing.join()

    assert {type(error) for error in errors} == {PeerLost}
    eventually(lambda: lost == [owner.info])


@BOTH_WAYS
def test_what_an_owner_answered_before_it_left_still_arrives(
    start_owner, reach, eventually, host_id
):
    """Its answer and its end arrive together."""
    owner, content = start_owner(), bytes(150_000)
    client = reach(owner, host_id=host_id)
    for _ in range(20):
        client.connect(10)
        channel = next(iter(owner.server._connections.values()))
        owner.server._operations["last"] = LastAnswer(channel, content)

        assert client.call("last", None, 20) == content

        eventually(lambda: client._calls.lost and not owner.server._connections)


class LastAnswer:
    """Sends an answer past the server, and ends the connection."""

    def __init__(self, channel, content) -> None:
        self._channel, self._content = channel, content

    def __call__(self, peer, payload):
        self._channel.send(frames.encode([0, 0, self._content, 0], 1 << 20), 1e9)
        self._channel.shutdown()


def test_a_lost_connection_is_told_once_and_the_next_call_makes_another(
    start_owner, reach, eventually
):
    owner, lost = start_owner(), []
    client = reach(owner, on_lost=lost.append)
    assert client.call("echo", 1, 10) == 1

    for round_number in range(1, 4):
        next(iter(owner.server._connections.values())).shutdown()
        eventually(lambda expected=round_number: len(lost) == expected)
        assert client.call("echo", round_number, 10) == round_number

    assert len(lost) == 3
    assert owner.counters().connections == client.counters().connections == 4


def test_after_a_failure_calls_fail_at_once_until_the_pause_is_over(start_owner, reach):
    owner, clock, asked = start_owner(), Clock(), []
    client = reach(owner, host_id="elsewhere", clock=clock, backoff_s=1, max_backoff_s=3)
    identity = client._identity
    client._identity = lambda: asked.append(clock.now) or identity()
    owner.close()

    for now in (100, 100.9, 101.1, 102, 103.0, 103.2, 106.1, 106.3, 109.2, 109.4):
        clock.now = now
        with pytest.raises(PeerLost):
            client.call("echo", 1, 10)

    assert asked == [100, 101.1, 103.2, 106.3, 109.4]  # pauses of 1, 2, 3, 3 seconds
    assert client.counters().refused == {"PeerLost": 5}


def test_after_a_success_the_pause_is_short_again(start_owner, reach, eventually):
    clock = Clock()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    info = PeerInfo("owner", 7, "elsewhere", {"control": ["127.0.0.1", port, "nowhere"]})
    client = reach(None, info=info, clock=clock, backoff_s=1, max_backoff_s=64)
    for _ in range(4):
        with pytest.raises(PeerLost):
            client.call("echo", 1, 10)
        clock.now += 10

    owner = start_owner(port=port)
    assert client.call("echo", 1, 10) == 1
    owner.close()
    eventually(lambda: client._calls.lost)
    with pytest.raises(PeerLost):
        client.call("echo", 1, 10)

    assert client._backoff_s == 1


def test_an_owner_that_restarted_at_the_same_port_is_another_life(start_owner, reach, eventually):
    first = start_owner(epoch=7)
    client = reach(first, host_id="elsewhere", backoff_s=1e-6, max_backoff_s=1e-6)
    assert client.call("echo", 1, 10) == 1
    first.close()
    eventually(lambda: client._calls.lost)

    second = start_owner(epoch=8, port=first.server.endpoint.port)

    with pytest.raises(StaleEpoch, match="owner is in epoch 8, not 7"):
        client.call("echo", 1, 10)
    eventually(lambda: second.counters().refused == {"stale": 1})


def test_a_restarted_owner_on_this_host_is_found_by_its_port(start_owner, reach):
    """The name of the old life's Unix socket is gone, and nobody else can have it."""
    first = start_owner()
    stale_unix = PeerInfo(
        "owner",
        7,
        "this host",
        {"control": [*first.server.endpoint.pack()[:2], "stafette-gone"]},
    )

    client = reach(first, info=stale_unix)

    assert client.call("echo", 1, 10) == 1
    assert not client._calls.carries_fds


def test_the_wrong_token_is_an_error_of_its_own_and_rests_too(start_owner, reach, eventually):
    owner, clock = start_owner(), Clock()
    client = reach(owner, token=b"not the token of it", clock=clock)

    for _ in range(3):
        with pytest.raises(AuthFailed, match="it refuses our proof"):
            client.call("echo", 1, 10)

    eventually(lambda: owner.counters().refused == {"auth": 1})


def test_a_client_can_be_closed_by_many_and_in_the_middle_of_calls(start_owner, reach):
    owner, lost = start_owner(), []
    client = reach(owner, on_lost=lost.append)

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(client.call, "held up", i, 60) for i in range(4)]
        for _ in calls:
            owner.entered.acquire()
        for closing in [pool.submit(client.close) for _ in range(4)]:
            closing.result()
        errors = [each.exception() for each in calls]

    assert {str(error) for error in errors} == {
        "peer owner is lost: the connection to it was closed here"
    }
    assert lost == []
    with pytest.raises(PeerLost, match="the way to it was closed here"):
        client.call("echo", 1, 10)
    with pytest.raises(PeerLost, match="the way to it was closed here"):
        client.dial("tcp", 10)


def test_a_client_can_be_closed_by_its_own_callback(start_owner, reach):
    owner, closed = start_owner(), threading.Event()

    def close(peer):
        client.close()
        closed.set()

    client = reach(owner, on_lost=close)
    client.connect(10)

    owner.close()

    assert closed.wait(20)


def test_a_callback_that_fails_is_logged(start_owner, reach, caplog, eventually):
    owner = start_owner()
    client = reach(owner, on_lost=lambda peer: 1 / 0)
    client.connect(10)

    owner.close()

    eventually(lambda: "callback for the loss of owner failed" in caplog.text)


@pytest.mark.parametrize("slow", [False, True])
def test_an_owner_can_be_closed_by_many_and_by_an_operation(start_owner, reach, slow):
    def close(peer, payload):
        owner.server.close()

    owner = start_owner(operations={})
    owner.server._operations["close"] = SlowOperation(close) if slow else close
    client = reach(owner)

    with pytest.raises(PeerLost):
        client.call("close", None, 20)

    with ThreadPoolExecutor(4) as pool:
        for closing in [pool.submit(owner.server.close) for _ in range(4)]:
            closing.result()


def test_an_operation_that_never_returns_is_told_at_the_close(start_owner, reach, caplog):
    owner = start_owner(close_timeout_s=0.05)
    client = reach(owner)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.call, "held up", None, 60)
        owner.entered.acquire()
        owner.server.close()
        assert isinstance(call.exception(), PeerLost)

    assert "1 operations of peers still run after 0.05 s" in caplog.text


def test_slow_calls_of_a_peer_that_left_are_not_begun(start_owner, reach, eventually):
    owner = start_owner(slow_threads=1)
    client, other = reach(owner), reach(owner, name="other")

    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(client.call, "held up", i, 60) for i in range(4)]
        owner.entered.acquire()
        eventually(lambda: owner.counters().calls["held up"] == 4)
        client.close()
        assert {type(each.exception()) for each in calls} == {PeerLost}
        eventually(lambda: len(owner.server._connections) == 0)
        owner.gate.set()
        assert other.call("held up", "mine", 20) == "mine"

    assert owner.entered.acquire(blocking=False)  # the other one's
    assert not owner.entered.acquire(blocking=False)
