"""Connections that a transport dials for itself: authenticated first, then all its own."""

import socket
import ssl
import threading
import time

import pytest

from stafette.kvtransfer.control import auth, frames, handshake
from stafette.kvtransfer.control.auth import GREETING_BYTES, Identity, Life, Transcript
from stafette.kvtransfer.control.channel import Channel
from stafette.kvtransfer.errors import AuthFailed, InvalidValue, PeerLost, TransferTimedOut
from stafette.kvtransfer.transport import PeerInfo

TOKEN = b"the token of this cluster"


@pytest.fixture
def serve_streams(start_owner):
    """Each stream is answered in its own thread: with its purpose, and then what it says."""

    def start(**options):
        def echo(purpose, connection, peer):
            with connection:
                connection.sendall(f"{peer.name} {peer.epoch} {purpose}:".encode())
                while data := connection.recv(65_536):
                    connection.sendall(data)

        owner = start_owner(**options)
        owner.on_stream = echo
        return owner

    return start


def hear(connection: socket.socket, expected: bytes) -> bool:
    return b"".join(iter_until(connection, len(expected))) == expected


def iter_until(connection: socket.socket, num_bytes: int):
    while num_bytes > 0 and (data := connection.recv(num_bytes)):
        num_bytes -= len(data)
        yield data


def test_a_stream_knows_who_dialled_and_what_for_and_is_blocking(serve_streams, reach):
    owner = serve_streams()

    with reach(owner).dial("tcp", 10) as connection:
        assert (connection.family, connection.gettimeout()) == (socket.AF_INET, None)
        assert hear(connection, b"reader 3 tcp:")
        connection.sendall(b"hello")
        assert hear(connection, b"hello")


def test_every_stream_has_a_thread_of_its_own_beside_the_calls(start_owner, reach):
    owner, threads = start_owner(), []
    together = threading.Barrier(3)

    def meet(purpose, connection, peer):
        threads.append(threading.current_thread())
        together.wait(20)
        connection.close()

    owner.on_stream = meet
    client = reach(owner)
    streams = [client.dial("tcp", 10) for _ in range(2)]
    assert client.call("echo", 1, 10) == 1
    together.wait(20)
    for stream in streams:
        assert stream.recv(1) == b""
        stream.close()

    assert len(set(threads)) == 2


def test_what_is_said_right_behind_the_handshake_is_not_lost(serve_streams):
    owner = serve_streams()
    ours, deadline = auth.greeting(b"model-a"), time.monotonic() + 20
    with owner.dial() as connection:
        channel = Channel(connection)
        channel.send(ours, deadline)
        theirs = channel.recv_exactly(GREETING_BYTES, deadline)
        transcript = Transcript(TOKEN, ours, theirs, b"")
        claim = [Life("eager", 1).pack(), Life.of(owner.info).pack(), "tcp"]
        transcript.add(*claim)
        handshake._send(channel, [*claim, transcript.prove("client")], deadline)
        handshake._read_answer(channel, "owner", transcript, deadline)
        handshake._receive_identity(channel, "server", transcript, deadline)
        body = Identity(PeerInfo("eager", 1, "")).pack()
        transcript.add(body)
        last = frames.encode([body, transcript.prove("client")], 1 << 20)

        connection.sendall(last + b"already the stream")

        assert hear(connection, b"eager 1 tcp:already the stream")


def test_a_stream_outlives_the_owners_control_plane(serve_streams, reach):
    owner = serve_streams()
    with reach(owner).dial("tcp", 10) as connection:
        assert hear(connection, b"reader 3 tcp:")

        owner.close()

        connection.sendall(b"still here")
        assert hear(connection, b"still here")


def test_a_transport_that_fails_is_counted_and_its_connection_closed(
    start_owner, reach, caplog, eventually
):
    owner = start_owner()
    owner.on_stream = lambda *stream: 1 / 0

    with reach(owner).dial("tcp", 10) as connection:
        assert connection.recv(1) == b""

    eventually(lambda: owner.counters().failures == 1)
    assert "the tcp connection of reader failed" in caplog.text


@pytest.mark.parametrize("purpose", ["", "calls", "x" * 65])
def test_a_purpose_that_cannot_be_is_the_callers_mistake(start_owner, reach, purpose):
    with pytest.raises(InvalidValue, match="purpose = "):
        reach(start_owner()).dial(purpose, 10)


def test_dialling_fails_as_calling_does(start_owner, reach):
    owner = start_owner()
    stranger, client = reach(owner, token=b"not the token of it"), reach(owner)

    with pytest.raises(AuthFailed):
        stranger.dial("tcp", 10)
    with pytest.raises(TransferTimedOut):
        client.dial("tcp", 0)
    owner.close()
    with pytest.raises(PeerLost):
        client.dial("tcp", 10)


def test_with_tls_a_stream_is_a_tls_socket_on_both_ends(serve_streams, reach, tls):
    owner = serve_streams(**tls)

    with reach(owner, **tls).dial("tcp", 10) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert hear(connection, b"reader 3 tcp:")
        payload = bytes(range(256)) * 1_000
        connection.sendall(payload)
        assert hear(connection, payload)
