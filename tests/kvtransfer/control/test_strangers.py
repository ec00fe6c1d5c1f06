"""Who has proved nothing yet takes little, and keeps nobody from his work."""

import logging
import socket
import threading

import pytest

from stafette.kvtransfer.control import server as server_module
from stafette.kvtransfer.errors import AuthFailed, PeerLost


def is_closed(connection: socket.socket) -> bool:
    """Wait until the other side ends the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.fixture
def knock():
    """Connect, and say nothing."""
    connections = []

    def start(owner, count: int, unix: bool = False) -> list[socket.socket]:
        found = [owner.dial(unix) for _ in range(count)]
        connections.extend(found)
        return found

    yield start
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("unix", [False, True])
def test_more_strangers_than_allowed_are_turned_away_and_known_peers_go_on(
    start_owner, reach, knock, eventually, unix
):
    owner = start_owner(max_strangers=3, handshake_timeout_s=60)
    client = reach(owner)
    assert client.call("echo", 1, 10) == 1

    silent = knock(owner, 3, unix)
    more = knock(owner, 4, unix)

    assert all(map(is_closed, more))
    assert owner.counters().refused == {"busy": 4}
    assert client.call("echo", 2, 10) == 2
    for connection in silent:
        connection.close()
    eventually(lambda: owner.counters().refused["lost"] == 3)


def test_a_newcomer_who_finds_no_place_is_told_by_the_loss_and_gets_one_later(
    start_owner, reach, knock, eventually
):
    owner = start_owner(max_strangers=1, handshake_timeout_s=60)
    client = reach(owner, host_id="elsewhere", backoff_s=1e-6, max_backoff_s=1e-6)
    (silent,) = knock(owner, 1)

    with pytest.raises(PeerLost):
        client.call("echo", 1, 10)

    silent.close()
    eventually(lambda: owner.counters().refused["lost"] == 1)
    assert client.call("echo", 1, 10) == 1


def test_strangers_of_one_way_in_leave_the_other_one_free(start_owner, reach, knock):
    owner = start_owner(max_strangers=1, handshake_timeout_s=60)
    knock(owner, 1, unix=False)

    assert reach(owner).call("echo", 1, 10) == 1


def test_who_says_nothing_is_sent_away_at_the_deadline(start_owner, reach, knock):
    owner = start_owner(max_strangers=2, handshake_timeout_s=0.5)

    silent = knock(owner, 2)

    assert all(map(is_closed, silent))
    assert owner.counters().refused == {"deadline": 2}
    assert reach(owner, host_id="elsewhere").call("echo", 1, 10) == 1


def test_who_speaks_one_byte_at_a_time_does_not_stay_longer(start_owner, knock):
    owner = start_owner(handshake_timeout_s=0.2)
    (slow,) = knock(owner, 1)
    ended = threading.Event()

    def drip():
        try:
            for byte in b"stafkvct" * 100:
                slow.send(bytes([byte]))
                if ended.wait(0.01):
                    return
        except OSError:
            pass

    dripping = threading.Thread(target=drip)
    dripping.start()
    assert is_closed(slow)
    ended.set()
    dripping.join()

    assert owner.counters().refused == {"deadline": 1}


def test_strangers_do_not_fill_the_log(start_owner, reach, eventually, caplog):
    owner = start_owner()
    clients = [reach(owner, token=b"not the token of it", host_id="elsewhere") for _ in range(20)]

    with caplog.at_level(logging.INFO):
        for client in clients:
            with pytest.raises(AuthFailed):
                client.call("echo", 1, 10)

    eventually(lambda: owner.counters().refused == {"auth": 20})
    assert len(caplog.records) == 1


def test_where_no_thread_can_be_started_the_connection_is_turned_away(
    start_owner, reach, eventually, monkeypatch
):
    owner = start_owner()
    client = reach(owner)
    assert client.call("echo", 1, 10) == 1

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        connection = owner.dial()
        assert is_closed(connection)
        connection.close()
        assert client.call("echo", 2, 10) == 2

    assert owner.counters().refused == {"busy": 1}
    assert reach(owner).call("echo", 3, 10) == 3


def test_where_no_descriptor_is_left_the_next_connection_waits(start_owner, reach, monkeypatch):
    owner = start_owner()
    monkeypatch.setattr(server_module, "_ACCEPT_PAUSE_S", 0.01)
    accept, failures = socket.socket.accept, []

    def fail_twice(listener):
        if len(failures) < 2:
            failures.append(listener)
            raise OSError(24, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", fail_twice)

    assert reach(owner).call("echo", 1, 10) == 1
    assert len(failures) == 2


def test_a_process_of_another_user_is_not_even_listened_to(start_owner, monkeypatch):
    owner = start_owner()
    monkeypatch.setattr(server_module, "same_user", lambda connection: False)

    connection = owner.dial(unix=True)

    assert is_closed(connection)
    connection.close()
    assert owner.counters().refused == {"user": 1}


def test_our_own_failure_at_the_door_is_counted_and_the_next_one_is_let_in(
    start_owner, reach, monkeypatch, caplog
):
    owner = start_owner()
    failing = [True]

    def fail_once(connection):
        if failing.pop() if failing else False:
            connection.close()
            raise ZeroDivisionError
        return True

    monkeypatch.setattr(server_module, "same_user", fail_once)
    first = owner.dial(unix=True)
    assert is_closed(first)
    first.close()

    assert reach(owner).call("echo", 1, 10) == 1
    assert owner.counters().failures == 1
    assert "could not be taken" in caplog.text
