"""Whatever bytes come, at whatever moment: the connection ends, counted, and no other suffers."""

import socket
import threading
import time
import tracemalloc

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.control import auth, handshake
from stafette.kvtransfer.control.auth import GREETING_BYTES, Identity, Life, Transcript
from stafette.kvtransfer.control.channel import Channel
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.handshake import Party
from stafette.kvtransfer.errors import KvTransferError, PeerLost
from stafette.kvtransfer.transport import PeerInfo

TOKEN = b"the token of this cluster"
STAGES = ("greeting", "claim", "identity", "calls")
MANY = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Hostile:
    """A client that knows the token, keeps to the protocol up to a stage, and then does not."""

    def __init__(self, owner, unix: bool = False) -> None:
        self._owner = owner
        self.socket = owner.dial(unix)
        self._channel = Channel(self.socket)
        self._deadline = time.monotonic() + 20

    def come_to(self, stage: str) -> None:
        if stage == "greeting":
            return
        ours = auth.greeting(b"model-a")
        self.socket.sendall(ours)
        theirs = self._channel.recv_exactly(GREETING_BYTES, self._deadline)
        if stage == "claim":
            return
        transcript = Transcript(TOKEN, ours, theirs, b"")
        claim = [Life("hostile", 1).pack(), Life.of(self._owner.info).pack(), "calls"]
        transcript.add(*claim)
        handshake._send(self._channel, [*claim, transcript.prove("client")], self._deadline)
        handshake._read_answer(self._channel, "owner", transcript, self._deadline)
        handshake._receive_identity(self._channel, "server", transcript, self._deadline)
        if stage == "identity":
            return
        identity = Identity(PeerInfo("hostile", 1, ""))
        handshake._send_identity(self._channel, identity, "client", transcript, self._deadline)

    def say(self, data: bytes) -> bytes:
        """Say it, and nothing more; return what is said until the connection ends."""
        heard = b""
        try:
            self.socket.sendall(data)
            self.socket.shutdown(socket.SHUT_WR)
            while part := self.socket.recv(65_536):
                heard += part
        except OSError:  # it closed with bytes of ours that it had not read
            pass
        finally:
            self.socket.close()
        return heard


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.binary(), st.text()),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
packed = plain.map(msgpack.packb).map(framed)
junk = st.one_of(st.binary(min_size=1, max_size=300), st.binary(max_size=300).map(framed), packed)


@pytest.fixture
def known_owner(start_owner):
    """An owner, and how many connections it has ended for what they said or left out."""
    owner = start_owner()

    def ended() -> int:
        counters = owner.counters()
        refused = counters.refused
        return refused.total() - refused["malformed"] + counters.malformed

    owner.ended = ended
    return owner


@pytest.mark.parametrize("stage", STAGES[:3])
@given(junk)
@MANY
def test_no_bytes_of_a_stranger_do_any_harm(known_owner, reach, eventually, stage, data):
    before = known_owner.ended()
    hostile = Hostile(known_owner)
    hostile.come_to(stage)

    hostile.say(data)

    eventually(lambda: known_owner.ended() == before + 1)
    assert known_owner.counters().failures == 0
    assert reach(known_owner).call("echo", 5, 10) == 5


@given(junk)
@MANY
def test_no_bytes_of_a_peer_do_any_harm(known_owner, reach, data):
    hostile = Hostile(known_owner, unix=True)
    hostile.come_to("calls")

    hostile.say(data)

    assert known_owner.counters().failures == 0
    assert reach(known_owner).call("echo", 5, 10) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",  # no body
        b"\xff\xff\xff\xff" + bytes(100),
        (32 << 20 | 1).to_bytes(4, "big"),
        framed(b"\xc1"),
        framed(b"\x91" * 100_000),  # deeper than any reader goes
        framed(b"\xdd\xff\xff\xff\xff"),  # a list of 4 billion
        framed(b"\xdf\xff\xff\xff\xff"),
        framed(b"\xdb\xff\xff\xff\xff"),
        framed(msgpack.packb([0, "echo", None, False]) + b"\0"),
        framed(msgpack.packb([0, "echo", None])),
        framed(msgpack.packb([-1, "echo", None, False])),
        framed(msgpack.packb([True, "echo", None, False])),
        framed(msgpack.packb([1 << 63, "echo", None, False])),
        framed(msgpack.packb([0, b"echo", None, False])),
        framed(msgpack.packb([0, "e" * 129, None, False])),
        framed(msgpack.packb([0, "echo", None, 0])),
        framed(msgpack.packb({"id": 0})),
        framed(b"\x94\x00\xa4\xff\xfe\xff\xfe\xc0\xc2"),  # no UTF-8
    ],
)
def test_a_peer_that_breaks_the_format_is_counted_and_loses_its_connection(
    known_owner, reach, eventually, data
):
    hostile = Hostile(known_owner)
    hostile.come_to("calls")

    assert hostile.say(data) == b""

    eventually(lambda: known_owner.counters().malformed == 1)
    assert reach(known_owner).call("echo", 5, 10) == 5


def test_questions_before_the_bad_one_are_answered(known_owner):
    hostile = Hostile(known_owner)
    hostile.come_to("calls")
    good = framed(msgpack.packb([9, "echo", "hello", False]))

    heard = hostile.say(good + framed(b"\xc1"))

    assert heard == framed(msgpack.packb([9, 0, "hello", 0]))


@pytest.mark.parametrize("stage", STAGES)
def test_an_announced_length_costs_no_memory(known_owner, stage):
    largest = {"greeting": 0, "claim": 1_024, "identity": 1 << 20, "calls": 32 << 20}
    announced = largest[stage].to_bytes(4, "big")
    hostiles = [Hostile(known_owner) for _ in range(10)]
    for hostile in hostiles:
        hostile.come_to(stage)

    tracemalloc.start()
    for hostile in hostiles:
        hostile.socket.sendall(announced + b"\0")
    for hostile in hostiles:
        hostile.say(b"")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 20 << 20  # ten of them, and an identity may be read a mebibyte at a time


class Liar:
    """An owner that knows the token, answers the first question with some bytes, and leaves."""

    def __init__(self) -> None:
        self.answer, self.fds = b"", []
        self._listener = socket.create_server(("127.0.0.1", 0))
        endpoint = ["127.0.0.1", self._listener.getsockname()[1], "nowhere"]
        self.info = PeerInfo("liar", 1, "elsewhere", {"control": endpoint})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        us = Party(ControlConfig(token=TOKEN, digest=b"model-a"), Identity(self.info))
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                channel = Channel(connection)
                handshake.admit(channel, us, "stranger", time.monotonic() + 20)
                channel.recv(65_536, time.monotonic() + 20)
                connection.sendall(self.answer)


@pytest.fixture
def liar():
    found = Liar()
    yield found
    found.close()


def ask(client):
    try:
        return client.call("echo", 1, 10)
    except KvTransferError as error:
        return type(error)


@given(answer=junk)
@MANY
def test_no_answer_of_a_peer_does_any_harm(liar, reach, eventually, answer):
    lost = []
    liar.answer = answer
    client = reach(liar, on_lost=lost.append)

    found = ask(client)

    # By chance it may have been a good answer, or an error in good form.
    assert found is PeerLost or answer[4:5] == b"\x94"
    eventually(lambda: lost == [liar.info])
    client.close()


@pytest.mark.parametrize(
    "answer",
    [
        [0, 2, None, 0],
        [0, 0, None, 1],  # a file descriptor by TCP
        [0, 0, None, -1],
        [0, 0, None],
        [-1, 0, None, 0],
        [0, 1, None, 0],
        [0, 1, ["PeerLost", ["a"]], 0],
        [0, 1, ["PeerLost", ["a", 7]], 0],
        [0, 1, ["StaleEpoch", ["a", 1, -1]], 0],
        [0, 1, ["StaleBlocks", ["a", "b", [1, -1]]], 0],
        [0, 1, [7, []], 0],
    ],
)
def test_a_wrong_answer_loses_the_connection_and_says_why(liar, reach, answer):
    liar.answer = framed(msgpack.packb(answer))

    with pytest.raises(PeerLost, match="its answer breaks the format") as caught:
        reach(liar).call("echo", 1, 10)

    assert caught.value.peer == "liar"
