"""Who may talk with whom: proofs, names and epochs, and what a man in the middle can do."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.control import auth, handshake
from stafette.kvtransfer.control.auth import GREETING_BYTES, Identity, Life, Transcript
from stafette.kvtransfer.control.channel import Channel
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.handshake import Admitted, Party, admit, greet
from stafette.kvtransfer.errors import (
    AuthFailed,
    Incompatible,
    MalformedMessage,
    PeerLost,
    StaleEpoch,
)
from stafette.kvtransfer.transport import PeerInfo

TOKEN = b"the token of this cluster"
READER, OWNER = PeerInfo("reader", 3, "host a", {"tcp": 9}), PeerInfo("owner", 7, "host b")


def party(peer: PeerInfo, token: bytes = TOKEN, digest: bytes = b"") -> Party:
    return Party(ControlConfig(token=token, digest=digest), Identity(peer, b"metadata"))


def attempt(run):
    """Return what it returns or raises; afterwards its socket is closed, as in real life."""
    try:
        return run()
    except (OSError, AuthFailed, Incompatible, MalformedMessage, PeerLost, StaleEpoch) as error:
        return error


class Wire:
    """The net between a client and a server; `meddle(direction, offset, data)` may change bytes."""

    def __init__(self, meddle=lambda direction, offset, data: data) -> None:
        self.client, near_client = socket.socketpair()
        self.server, near_server = socket.socketpair()
        self.said = {"client": b"", "server": b""}
        self._meddle = meddle
        self._ends = (near_client, near_server)
        self._pumps = [
            threading.Thread(target=self._pump, args=arguments)
            for arguments in (
                ("client", near_client, near_server),
                ("server", near_server, near_client),
            )
        ]
        for pump in self._pumps:
            pump.start()

    def _pump(self, speaker, source, sink) -> None:
        try:
            while data := source.recv(65_536):
                offset = len(self.said[speaker])
                self.said[speaker] += data
                sink.sendall(self._meddle(speaker, offset, data))
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        for each in (self.client, self.server):
            each.close()
        for pump in self._pumps:
            pump.join()
        for each in self._ends:
            each.close()


def shake(us=None, them=None, wanted=OWNER, wire=None, purpose="calls", seconds=10.0):
    """Return what became of both ends: of the client, of the server."""
    wire = wire or Wire()
    us, them = us or party(READER), them or party(OWNER)
    deadline = time.monotonic() + seconds
    near, far = Channel(wire.client), Channel(wire.server)

    def serve():
        try:
            return attempt(lambda: admit(far, them, "stranger", deadline))
        finally:
            far.shutdown()

    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(serve)
        client = attempt(lambda: greet(near, us, wanted, purpose, deadline))
        if isinstance(client, Exception):
            near.shutdown()
        found = client, server.result()
    wire.close()
    return found


def test_both_ends_learn_who_the_other_one_is_and_what_for():
    client, server = shake(purpose="tcp")

    assert client == Identity(OWNER, b"metadata")
    assert server == Admitted(Identity(READER, b"metadata"), "tcp")


def test_another_token_is_refused_on_both_ends():
    client, server = shake(us=party(READER, b"the token of another one"))

    assert (type(client), client.args) == (AuthFailed, ("owner", "it refuses our proof"))
    assert (type(server), server.args) == (AuthFailed, ("stranger", "wrong proof"))


def pretend_to_be_the_server(wire: Wire, answer) -> None:
    """Greet, read the claim, and answer it without knowing the token."""
    channel = Channel(wire.server)
    deadline = time.monotonic() + 10
    channel.recv_exactly(GREETING_BYTES, deadline)
    channel.send(auth.greeting(b""), deadline)
    claim = handshake._receive(channel, 10_000, deadline)
    handshake._send(channel, answer(claim), deadline)


def test_a_proof_is_that_of_one_role_one_token_and_one_course_of_things():
    transcript = Transcript(TOKEN, b"said", ["so", 1])
    proof = transcript.prove("client")

    assert transcript.proves("client", proof)
    assert not transcript.proves("server", proof)
    assert not Transcript(b"another token...", b"said", ["so", 1]).proves("client", proof)
    for other in ([b"said", ["so", 2]], [b"sai", b"d", ["so", 1]], [b"said"], [["so", 1], b"said"]):
        assert not Transcript(TOKEN, *other).proves("client", proof)
    transcript.add(b"more")
    assert not transcript.proves("client", proof)


@pytest.mark.parametrize(
    "answer",
    [
        lambda claim: [["owner", 7], bytes(32)],
        lambda claim: [["owner", 7], claim[3]],  # the client's own proof, in the other role
        lambda claim: [claim[0], claim[3]],
    ],
)
def test_a_server_that_does_not_know_the_token_is_refused(answer):
    wire = Wire()
    server = threading.Thread(target=pretend_to_be_the_server, args=(wire, answer))
    server.start()

    client = attempt(
        lambda: greet(Channel(wire.client), party(READER), OWNER, "calls", time.monotonic() + 10)
    )
    server.join()
    wire.close()

    assert (type(client), client.args) == (AuthFailed, ("owner", "wrong proof"))


def test_a_recorded_session_is_worth_nothing():
    recorded = Wire()
    shake(wire=recorded)
    near, far = socket.socketpair()

    near.sendall(recorded.said["client"])
    server = attempt(lambda: admit(Channel(far), party(OWNER), "stranger", time.monotonic() + 10))
    far.close()
    heard = near.recv(65_536)
    near.close()

    assert (type(server), server.args) == (AuthFailed, ("stranger", "wrong proof"))
    assert heard[GREETING_BYTES:] == b"\0\0\0\x01\x90"  # the refusal, and no name


def test_the_recorded_answers_of_a_server_are_worth_nothing():
    recorded = Wire()
    shake(wire=recorded)
    near, far = socket.socketpair()

    far.sendall(recorded.said["server"])
    client = attempt(
        lambda: greet(Channel(near), party(READER), OWNER, "calls", time.monotonic() + 10)
    )
    near.close()
    far.close()

    assert (type(client), client.args) == (AuthFailed, ("owner", "wrong proof"))


def test_a_greeting_that_comes_back_as_it_was_sent_is_refused():
    near, far = socket.socketpair()

    def reflect():
        far.sendall(far.recv(65_536))

    mirror = threading.Thread(target=reflect)
    mirror.start()
    client = attempt(
        lambda: greet(Channel(near), party(READER), OWNER, "calls", time.monotonic() + 10)
    )
    mirror.join()
    near.close()
    far.close()

    assert isinstance(client, MalformedMessage)


def test_whoever_is_led_to_itself_notices_on_both_ends():
    client, server = shake(us=party(OWNER), them=party(OWNER), wanted=READER)

    assert (type(client), client.peer) == (PeerLost, "reader")
    assert (type(server), server.expected, server.found) == (StaleEpoch, 3, 7)


def test_another_name_at_the_address_means_that_the_peer_is_lost():
    client, server = shake(wanted=PeerInfo("old owner", 7, ""))

    assert (type(client), client.args) == (PeerLost, ("old owner", "at its address is owner now"))
    assert isinstance(server, StaleEpoch)


@pytest.mark.parametrize("epoch", [6, 8])
def test_another_life_of_the_peer_is_stale_on_both_ends(epoch):
    client, server = shake(wanted=PeerInfo("owner", epoch, ""))

    for end in (client, server):
        assert (type(end), end.args) == (StaleEpoch, ("owner", epoch, 7))


def test_another_digest_is_incompatible_and_both_ends_know_both_values():
    client, server = shake(us=party(READER, digest=b"llama"), them=party(OWNER, digest=b"qwen"))

    ours, theirs = b"llama".hex(), b"qwen".hex()
    assert client.args == ("owner", "compatibility digest", ours, theirs)
    assert server.args == ("stranger", "compatibility digest", theirs, ours)
    assert type(client) is type(server) is Incompatible


@pytest.mark.parametrize("version", [0, 2, 65_535])
def test_another_version_is_incompatible_and_both_ends_know_both_values(version):
    def pretend(direction, offset, data):
        fields = list(auth._GREETING.unpack(data)) if not offset else []
        if not fields or direction == "server":
            return data
        fields[1] = version
        return auth._GREETING.pack(*fields)

    _, server = shake(wire=Wire(pretend))

    assert (type(server), server.args) == (
        Incompatible,
        ("stranger", "protocol version", "1", str(version)),
    )


def test_a_client_names_the_version_of_a_server_that_is_not_its_own():
    def pretend(direction, offset, data):
        is_greeting = direction == "server" and not offset
        return data[:8] + b"\0\x09" + data[10:] if is_greeting else data

    client, _ = shake(wire=Wire(pretend))

    assert (type(client), client.args) == (Incompatible, ("owner", "protocol version", "1", "9"))


def test_a_proof_is_bound_to_its_connection():
    wire = Wire()
    wire_channels = Channel(wire.client), Channel(wire.server)
    for channel, binding in zip(wire_channels, (b"leg one", b"leg two"), strict=True):
        channel.binding = binding
    deadline = time.monotonic() + 10

    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(
            attempt, lambda: admit(wire_channels[1], party(OWNER), "stranger", deadline)
        )
        client = attempt(lambda: greet(wire_channels[0], party(READER), OWNER, "calls", deadline))
        found = (type(client), type(server.result()))
    wire.close()

    assert found == (AuthFailed, AuthFailed)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["client", "server"]), st.integers(0, 330), st.integers(0, 7))
def test_no_bit_can_be_changed_on_the_way(direction, place, bit):
    changed = threading.Event()

    def flip(speaker, offset, data):
        if speaker != direction or not offset <= place < offset + len(data):
            return data
        changed.set()
        data = bytearray(data)
        data[place - offset] ^= 1 << bit
        return bytes(data)

    # A longer length than what follows would have the reader wait: nobody else ends that.
    client, server = shake(wire=Wire(flip), seconds=0.4)

    assert not (changed.is_set() and isinstance(server, Admitted))
    if direction == "server":
        assert changed.is_set() == isinstance(client, Exception)


def test_a_name_that_was_not_proved_is_malformed():
    """A client that knows the token, and calls itself one thing first and another one later."""
    wire = Wire()
    deadline = time.monotonic() + 10

    def lie():
        channel, ours = Channel(wire.client), auth.greeting(b"")
        channel.send(ours, deadline)
        theirs = channel.recv_exactly(GREETING_BYTES, deadline)
        transcript = Transcript(TOKEN, ours, theirs, b"")
        claim = [Life("reader", 3).pack(), Life.of(OWNER).pack(), "calls"]
        transcript.add(*claim)
        handshake._send(channel, [*claim, transcript.prove("client")], deadline)
        handshake._read_answer(channel, "owner", transcript, deadline)
        handshake._receive_identity(channel, "server", transcript, deadline)
        other = Identity(PeerInfo("somebody else", 3, ""))
        handshake._send_identity(channel, other, "client", transcript, deadline)

    liar = threading.Thread(target=lie)
    liar.start()
    server = attempt(lambda: admit(Channel(wire.server), party(OWNER), "stranger", deadline))
    liar.join()
    wire.close()

    assert (type(server), server.where) == (MalformedMessage, "identity")


def be_client(channel: Channel, deadline: float):
    greet(channel, party(READER), OWNER, "calls", deadline)


def be_server(channel: Channel, deadline: float):
    admit(channel, party(OWNER), "stranger", deadline)


@pytest.mark.parametrize("be", [be_client, be_server])
def test_who_says_nothing_is_given_up_at_the_deadline(be):
    near, far = socket.socketpair()

    with pytest.raises(TimeoutError):
        be(Channel(near), time.monotonic() + 0.05)

    near.close()
    far.close()


def test_whatever_is_no_greeting_gets_no_answer():
    near, far = socket.socketpair()
    near.sendall(b"GET / HTTP/1.1\r\n" + bytes(GREETING_BYTES))

    with pytest.raises(MalformedMessage, match="magic"):
        be_server(Channel(far), time.monotonic() + 10)

    with pytest.raises(BlockingIOError):  # nothing was said
        near.recv(10, socket.MSG_DONTWAIT)
    near.close()
    far.close()
