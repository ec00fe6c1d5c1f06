"""TLS: certificates, and proofs that a man in the middle cannot pass on."""

import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stafette.kvtransfer.control import client as client_module
from stafette.kvtransfer.control.channel import TlsChannel
from stafette.kvtransfer.errors import AuthFailed, InvalidValue, PeerLost, TransferTimedOut
from stafette.kvtransfer.transport import PeerInfo


@pytest.fixture
def other_authority(make_authority):
    return make_authority("other")


def test_calls_and_their_answers_go_through_tls(start_owner, reach, tls):
    owner = start_owner(**tls)
    client = reach(owner, host_id="elsewhere", **tls)
    payload = bytes(range(256)) * 20_000  # many records

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: client.call("echo", [i, payload], 20)[0] == i, range(24)))

    assert isinstance(client._calls._channel, TlsChannel)
    assert owner.counters().connections == 1


def test_on_one_host_the_unix_socket_needs_no_tls(start_owner, reach, tls):
    client = reach(start_owner(**tls), **tls)

    assert client.call("echo", 1, 10) == 1
    assert client._calls.carries_fds


def channels(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[TlsChannel, TlsChannel]:
    near, far = socket.socketpair()
    return (
        TlsChannel(
            client.wrap_socket(near, do_handshake_on_connect=False, server_hostname="127.0.0.1")
        ),
        TlsChannel(server.wrap_socket(far, server_side=True, do_handshake_on_connect=False)),
    )


def test_the_binding_is_the_same_at_both_ends_and_never_twice(authority):
    seen = set()
    for _ in range(3):
        ends = channels(authority.context("client"), authority.context("server", "owner"))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda end: end.handshake(1e9), ends))
        assert ends[0].binding == ends[1].binding
        assert len(ends[0].binding) >= 32
        seen.add(ends[0].binding)
        for end in ends:
            end.close()

    assert len(seen) == 3


def test_an_owner_with_the_certificate_of_another_authority_is_refused(
    start_owner, reach, tls, other_authority, eventually
):
    owner = start_owner(**tls)
    suspicious = tls | {"tls_client": other_authority.context("client")}

    with pytest.raises(AuthFailed, match="certificate: "):
        reach(owner, host_id="elsewhere", **suspicious).call("echo", 1, 10)

    eventually(lambda: owner.counters().refused == {"tls": 1})


def test_a_client_without_the_certificate_that_the_owner_wants_is_refused(
    start_owner, reach, tls, authority, eventually
):
    tls["tls_server"].verify_mode = ssl.CERT_REQUIRED
    owner = start_owner(**tls)
    with_one = tls | {"tls_client": authority.context("client", "reader")}

    with pytest.raises(AuthFailed, match="it refuses our certificate"):
        reach(owner, host_id="elsewhere", **tls).call("echo", 1, 10)

    eventually(lambda: owner.counters().refused == {"tls": 1})
    assert reach(owner, host_id="elsewhere", **with_one).call("echo", 1, 10) == 1


def test_the_owners_reason_is_found_behind_a_send_that_fails(authority):
    wants_one = authority.context("server", "owner")
    wants_one.verify_mode = ssl.CERT_REQUIRED
    client, server = channels(authority.context("client"), wants_one)

    def serve():
        with pytest.raises(ssl.SSLError):
            server.handshake(1e9)
        server.close()

    serving = threading.Thread(target=serve)
    serving.start()
    client.handshake(1e9)  # in TLS 1.3 the client is done before its certificate is looked at
    serving.join()

    with pytest.raises(OSError, match="EOF|closed|Broken|reset"):
        client.send(b"greeting", 1e9)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        client.raise_alert()
    client.close()


def test_tls_does_not_stand_for_the_token(start_owner, reach, tls):
    client = reach(start_owner(**tls), host_id="elsewhere", token=b"x" * 16, **tls)

    with pytest.raises(AuthFailed, match="it refuses our proof"):
        client.call("echo", 1, 10)


class Relay:
    """A man in the middle who has a good certificate, and passes on all that is said."""

    def __init__(self, owner, server_side: ssl.SSLContext, client_side: ssl.SSLContext) -> None:
        self._owner, self._sides = owner, (server_side, client_side)
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        endpoints = {"control": [host, port, "nowhere"]}
        self.info = PeerInfo(owner.info.name, owner.info.epoch, "elsewhere", endpoints)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        near = self._sides[0].wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        far = self._sides[1].wrap_socket(
            self._owner.dial(), do_handshake_on_connect=False, server_hostname="127.0.0.1"
        )
        ends = TlsChannel(near), TlsChannel(far)
        for end in ends:
            end.handshake(1e9)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._pass_on, ends, reversed(ends)))
        for end in ends:
            end.close()

    def _pass_on(self, source: TlsChannel, sink: TlsChannel) -> None:
        try:
            while data := source.recv(65_536, None):
                sink.send(data, 1e9)
        except OSError:
            pass
        for end in (source, sink):
            end.shutdown()


@pytest.fixture
def relay(start_owner, tls, authority):
    """He does not know the token; his certificate is good, as a stolen one is."""
    owner = start_owner(**tls)
    found = Relay(owner, authority.context("server", "thief"), authority.context("client"))
    found.owner = owner
    yield found
    found.close()


def test_a_man_in_the_middle_with_a_good_certificate_cannot_pass_proofs_on(
    relay, reach, tls, eventually
):
    client = reach(relay.owner, info=relay.info, host_id="elsewhere", **tls)

    with pytest.raises(AuthFailed, match="it refuses our proof"):
        client.call("echo", 1, 10)

    eventually(lambda: relay.owner.counters().refused == {"auth": 1})


def test_without_the_binding_that_man_would_succeed(relay, reach, tls, monkeypatch):
    """So the test above tests what it says."""
    monkeypatch.setattr(TlsChannel, "_finished", lambda channel: b"")
    client = reach(relay.owner, info=relay.info, host_id="elsewhere", **tls)

    assert client.call("echo", 1, 10) == 1


@pytest.mark.parametrize("plain_end", ["client", "server"])
def test_tls_and_none_do_not_understand_each_other(start_owner, reach, tls, eventually, plain_end):
    owner = start_owner(**({} if plain_end == "server" else tls))
    client = reach(owner, host_id="elsewhere", **({} if plain_end == "client" else tls))

    with pytest.raises(PeerLost):
        client.call("echo", 1, 10)

    reason = "malformed" if plain_end == "server" else "tls"
    eventually(lambda: owner.counters().refused == {reason: 1})


@pytest.mark.parametrize("session", ["old version", "resumed"])
def test_only_new_sessions_of_tls_1_3_are_taken(
    start_owner, tls, authority, monkeypatch, eventually, session
):
    owner, context = start_owner(**tls), authority.context("client")
    if session == "old version":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    else:
        monkeypatch.setattr(ssl.SSLSocket, "session_reused", True)

    with context.wrap_socket(owner.dial(), server_hostname="127.0.0.1") as connection:
        connection.sendall(b"x")

    eventually(lambda: owner.counters().refused == {"tls": 1})


def test_a_python_that_tells_no_finished_message_is_refused(start_owner, reach, tls, monkeypatch):
    def unknown(connection, kind):
        raise ValueError(f"{kind} channel binding type not implemented")

    monkeypatch.setattr(ssl.SSLSocket, "get_channel_binding", unknown)

    with pytest.raises(PeerLost, match="does not tell a session's Finished"):
        reach(start_owner(**tls), host_id="elsewhere", **tls).call("echo", 1, 10)


def test_a_peer_without_a_host_name_that_a_certificate_could_have_is_lost(
    start_owner, reach, tls, monkeypatch
):
    owner = start_owner(**tls)
    connection = owner.dial()
    monkeypatch.setattr(client_module, "dial_tcp", lambda endpoint, deadline: connection)
    info = PeerInfo("owner", 7, "elsewhere", {"control": ["", 1, "nowhere"]})

    with pytest.raises(PeerLost, match="no TLS with it"):
        reach(owner, info=info, **tls).call("echo", 1, 10)


def test_a_silent_client_is_sent_away_in_the_tls_handshake_too(start_owner, tls, eventually):
    owner = start_owner(handshake_timeout_s=0.05, **tls)

    with owner.dial() as silent:
        assert silent.recv(1) == b""

    eventually(lambda: owner.counters().refused == {"deadline": 1})


def test_a_sender_past_its_deadline_ends_a_tls_connection(start_owner, reach, tls):
    """OpenSSL wants the very same bytes again, and has sent some of them."""
    owner = start_owner(**tls)
    owner.server._operations["block"] = lambda peer, payload: owner.gate.wait(20)
    client = reach(owner, host_id="elsewhere", **tls)
    client.connect(10)
    calls = client._calls

    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(client.call, "block", None, 20)
        while not owner.counters().calls["block"]:
            pass  # from now on, nobody reads there
        with pytest.raises(TransferTimedOut):
            client.call("echo", bytes(30 << 20), 0.1)
        with pytest.raises(PeerLost, match="only in part"):
            calls.call("echo", 1, False, 10)
        owner.gate.set()
        assert isinstance(blocked.exception(), PeerLost)


def test_closing_in_the_middle_of_tls_calls_loses_them_and_nothing_else(start_owner, reach, tls):
    owner = start_owner(**tls)
    for _ in range(5):
        client = reach(owner, host_id="elsewhere", **tls)
        client.connect(10)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(client.call, "echo", bytes(4 << 20), 20) for _ in range(4)]
            client.close()
            errors = [each.exception() for each in calls]
        assert {type(error) for error in errors} <= {PeerLost, type(None)}

    assert owner.counters().malformed == 0  # nobody took encrypted bytes for a message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda tls: tls | {"tls_server": tls["tls_client"]}, "tls_server.protocol"),
        (lambda tls: tls | {"tls_client": tls["tls_server"]}, "tls_client.protocol"),
        (lambda tls: tls | {"tls_client": None}, "tls_server, tls_client"),
    ],
)
def test_contexts_of_the_wrong_side_and_only_one_are_refused(reach, tls, change, field):
    with pytest.raises(InvalidValue) as caught:
        reach(None, info=PeerInfo("x", 1, "", {"control": ["h", 1, ""]}), **change(tls))

    assert caught.value.field == f"control.{field}"


def test_contexts_that_cannot_do_tls_1_3_are_refused(reach, tls):
    tls["tls_client"].maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises(InvalidValue, match="maximum_version = 'TLSv1_2': must allow TLSv1_3"):
        reach(None, info=PeerInfo("x", 1, "", {"control": ["h", 1, ""]}), **tls)
