"""Where an agent listens and how it is reached; what tells that two processes share a host."""

import socket
import threading
import time
from pathlib import Path

import pytest

from stafette.kvtransfer.control import endpoint as endpoint_module
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.endpoint import (
    Endpoint,
    dial_tcp,
    dial_unix,
    listen_tcp,
    listen_unix,
    same_user,
    unix_name,
)
from stafette.kvtransfer.control.host import host_id, read_host_id
from stafette.kvtransfer.errors import InvalidValue, MalformedMessage

TOKEN = b"the token of this cluster"


def listen(**options) -> socket.socket:
    return listen_tcp(ControlConfig(token=TOKEN, **options))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "0"])
def test_every_interface_is_only_listened_on_when_that_is_wanted(host):
    with pytest.raises(InvalidValue, match="every interface: name one address"):
        listen(host=host)

    listen(host=host, allow_wildcard=True, advertised_host="here").close()


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(InvalidValue, match=f"127.0.0.1:{port}.*must be a free address"):
            listen(port=port)


@pytest.mark.parametrize("host", ["", "203.0.113.1", "no such host.invalid"])
def test_a_host_that_is_not_ours_is_named(host):
    with pytest.raises(InvalidValue, match="must be a.* address of this host"):
        listen(host=host)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        ["h", 1],
        ["h", 65_536, ""],
        ["h", -1, ""],
        ["h", True, ""],
        [b"h", 1, ""],
        ["h" * 256, 1, ""],
        ["h", 1, "u" * 101],
        {"h": 1},
    ],
)
def test_what_is_no_endpoint_is_malformed(value):
    with pytest.raises(MalformedMessage):
        Endpoint.read(value)


def test_an_endpoint_is_read_as_it_was_written():
    endpoint = Endpoint("host", 7, "name")

    assert Endpoint.read(endpoint.pack()) == endpoint


def test_a_name_leads_to_the_address_that_answers(monkeypatch):
    """The first address of a host may be one where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address),
        ]
        resolve_as(monkeypatch, lambda: found)

        connection = dial_tcp(Endpoint("worker", 1, ""), time.monotonic() + 20)

        assert connection.getpeername() == address
        assert connection.gettimeout() is None
        connection.close()


def resolve_as(monkeypatch, find) -> None:
    def resolve(host, port, *rest, flags=0):
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        return find()

    monkeypatch.setattr(endpoint_module.socket, "getaddrinfo", resolve)


def test_a_name_server_that_does_not_answer_costs_no_more_than_the_deadline(monkeypatch):
    answered = threading.Event()
    resolve_as(monkeypatch, lambda: [] if answered.wait(20) else None)

    with pytest.raises(TimeoutError):
        dial_tcp(Endpoint("worker", 1, ""), time.monotonic() + 0.05)

    answered.set()


def test_a_name_that_nobody_knows_is_an_error_of_the_system(monkeypatch):
    def fail():
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    resolve_as(monkeypatch, fail)

    with pytest.raises(OSError, match="unknown"):
        dial_tcp(Endpoint("worker", 1, ""), time.monotonic() + 20)


def test_what_is_no_name_is_an_error_of_the_system_too():
    with pytest.raises(OSError, match="is no host name"):
        dial_tcp(Endpoint("x" * 255, 1, ""), time.monotonic() + 20)


def test_the_unix_socket_has_a_name_that_nobody_guesses():
    first, second = listen_unix(), listen_unix()

    assert unix_name(first) != unix_name(second)
    assert len(unix_name(first)) == len("stafette-") + 32
    first.close()
    second.close()


def test_a_listener_whose_queue_is_full_is_waited_for_until_the_deadline():
    listener = listen_unix()
    listener.listen(0)
    endpoint, waiting = Endpoint("", 0, unix_name(listener)), []

    with pytest.raises(TimeoutError):
        fill_queue(endpoint, waiting)

    accepting = threading.Timer(0.05, lambda: waiting.append(accept(listener)))
    accepting.start()
    waiting.append(dial_unix(endpoint, time.monotonic() + 20))
    accepting.join()
    for each in (*waiting, listener):
        each.close()


def fill_queue(endpoint: Endpoint, waiting: list) -> None:
    for _ in range(5):
        waiting.append(dial_unix(endpoint, time.monotonic() + 0.05))


def accept(listener: socket.socket) -> socket.socket:
    return listener.accept()[0]


def test_a_process_of_the_same_user_is_recognised():
    near, far = socket.socketpair()

    assert same_user(near)
    near.close()
    far.close()


def test_a_listener_of_another_user_is_not_spoken_to(monkeypatch):
    listener = listen_unix()
    monkeypatch.setattr(endpoint_module, "same_user", lambda connection: False)

    with pytest.raises(PermissionError, match="another user"):
        dial_unix(Endpoint("", 0, unix_name(listener)), time.monotonic() + 20)

    listener.close()


def fake_proc(folder: Path, boot: str, **spaces: str) -> Path:
    (folder / "sys/kernel/random").mkdir(parents=True)
    (folder / "sys/kernel/random/boot_id").write_text(boot + "\n")
    (folder / "self/ns").mkdir(parents=True)
    for name in ("net", "ipc", "pid"):
        (folder / "self/ns" / name).symlink_to(spaces.get(name, f"{name}:[1]"))
    return folder


def test_a_host_is_one_kernel_and_one_set_of_namespaces(tmp_path):
    first = read_host_id(fake_proc(tmp_path / "a", "boot 1"))

    assert read_host_id(fake_proc(tmp_path / "b", "boot 1")) == first
    assert read_host_id(fake_proc(tmp_path / "c", "boot 2")) != first
    for name in ("net", "ipc", "pid"):
        other = fake_proc(tmp_path / name, "boot 1", **{name: f"{name}:[2]"})
        assert read_host_id(other) != first


def test_where_nothing_is_told_every_peer_is_remote(tmp_path, caplog):
    assert read_host_id(tmp_path) != read_host_id(tmp_path)
    assert "every peer counts as remote" in caplog.text


def test_this_process_has_one_host():
    assert host_id() == host_id() == read_host_id(Path("/proc"))
