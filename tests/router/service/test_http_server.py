"""HTTP/1.1 as it comes over a socket: in pieces, several at once, too slowly, or not at all."""

import asyncio
import json
import re
import shutil
import ssl
import subprocess
from urllib.parse import urlsplit

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.errors import InvalidValue
from stafette.router.service.client import RouterClient, ServiceLost
from stafette.router.service.config import ServiceConfig
from stafette.router.service.http_server import Asked, HttpConnection, Reply

PROMPT = list(range(64))


class Wire:
    """A raw connection."""

    def __init__(self, reader, writer) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, served) -> "Wire":
        host, port = urlsplit(served.url).netloc.split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def reply(self):
        """Return the next answer's status, head and body."""
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 30)).decode()
        length = int(re.search(r"content-length: (\d+)", head)[1])
        return int(head.split()[1]), head, await self._reader.readexactly(length)

    async def rest(self) -> bytes:
        """Return what comes until the other side hangs up."""
        return await asyncio.wait_for(self._reader.read(), 30)

    async def close(self) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


@pytest.fixture
async def connect():
    wires = []

    async def to(served) -> Wire:
        wires.append(await Wire.to(served))
        return wires[-1]

    yield to
    for wire in wires:
        await wire.close()


def post(name: str, fields, *headers: str) -> bytes:
    body = json.dumps(fields).encode()
    lines = [f"POST /v1/router/{name} HTTP/1.1", "host: x", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_requests_that_come_together_are_answered_in_their_order(serve, connect):
    served = await serve()
    await served.client.register("a", 16)
    wire = await connect(served)

    names = [f"r{number}" for number in range(40)]
    wire.send(b"".join(post("select", {"request_id": n, "token_ids": PROMPT}) for n in names))

    answers = [json.loads((await wire.reply())[2]) for _ in names]
    assert [answer["request_id"] for answer in answers] == names


async def test_what_comes_behind_a_request_that_waits_is_answered_after_it(
    serve, connect, clock, eventually
):
    served = await serve(clock=clock, admission={"max_target_queue_ms": 0})
    await served.client.register("a", 16)
    await served.client.select("first", PROMPT)
    wire = await connect(served)
    waits = post("select", {"request_id": "second", "token_ids": PROMPT})

    wire.send(waits + post("heartbeat", {"client": "c"}) * 30)
    await eventually(lambda: len(served.service.requests.room) == 1)
    await served.client.free("first")

    assert json.loads((await wire.reply())[2])["request_id"] == "second"
    for _ in range(30):
        assert json.loads((await wire.reply())[2]) == {"reservations": 0}


async def test_a_body_may_come_in_chunks_and_be_asked_for(serve, connect):
    served = await serve()
    wire = await connect(served)

    wire.send(
        b"POST /v1/router/heartbeat HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        b"content-type: application/json\r\nexpect: 100-continue\r\n\r\n"
    )
    assert await wire._reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b'8\r\n{"client\r\n6\r\n":"c"}\r\n0\r\n\r\n')

    assert (await wire.reply())[0] == 200


async def test_a_head_alone_is_asked_for_with_head(serve, connect):
    served = await serve()
    wire = await connect(served)

    wire.send(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    head = await wire._reader.readuntil(b"\r\n\r\n")

    assert b"content-length: 16" in head
    assert await wire.reply() == (200, head.decode(), b'{"status": "ok"}')


@pytest.mark.parametrize(
    "asked",
    [
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ],
)
async def test_whoever_asks_once_is_hung_up_on(serve, connect, asked):
    served = await serve()
    wire = await connect(served)

    wire.send(asked)

    status, head, _ = await wire.reply()
    assert (status, "connection: close" in head) == (200, True)
    assert await wire.rest() == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /health HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 400),
        (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"POST /v1/router/free HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (b"POST /v1/router/free HTTP/1.1\r\ncontent-length: 999999999999\r\n\r\n", 413),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request_is_refused_and_hung_up_on(serve, connect, sent, status):
    served = await serve()
    wire = await connect(served)

    wire.send(sent)

    found, head, body = await wire.reply()
    assert (found, "connection: close" in head) == (status, True)
    assert {"field", "remedy"} <= json.loads(body)["error"].keys()
    await wire.rest()
    assert (await served.client.get("/health")) == {"status": "ok"}


async def test_a_head_that_does_not_end_is_not_waited_for(serve, connect):
    served = await serve(service={"body_timeout_s": 0.05})
    wire = await connect(served)

    wire.send(b"GET /health HTTP/1.1\r\nx: ")

    assert (await wire.reply())[0] == 408
    assert await wire.rest() == b""


async def test_a_connection_on_which_nothing_happens_is_closed(serve, connect):
    served = await serve(service={"keep_alive_s": 0.05})
    wire = await connect(served)

    assert await wire.rest() == b""


async def test_a_client_that_leaves_amid_its_request_leaves_nothing(serve, connect, eventually):
    served = await serve()
    server_side = served.server._connections
    wire = await connect(served)
    wire.send(post("free", {"request_id": "r"})[:-3])
    await eventually(lambda: len(server_side) == 1)

    await wire.close()

    await eventually(lambda: not server_side)


async def test_the_client_speaks_to_it_on_uvloop_as_well(serve):
    served = await serve()

    async def ask():
        async with RouterClient(served.url) as client:
            await client.register("a", 16)
            return (await client.select("r", PROMPT)).decode

    assert await asyncio.to_thread(uvloop.run, ask()) == "a"


@pytest.fixture
def certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with the openssl program, which is not installed")
    files = tmp_path / "key.pem", tmp_path / "cert.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    out = ["-keyout", files[0], "-out", files[1], "-days", "2"]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, *out, *name], check=True, capture_output=True
    )
    return tuple(map(str, files))


async def test_with_a_certificate_it_speaks_tls(one_service, certificate):
    key, cert = certificate
    async with one_service(service={"tls_certfile": cert, "tls_keyfile": key}) as served:
        trusting = ssl.create_default_context(cafile=cert)
        async with RouterClient(served.url, tls=trusting) as client:
            answer = await client.get("/health")
        async with RouterClient(served.url) as strict:
            with pytest.raises(ServiceLost, match="certificate"):
                await strict.workers()

    assert served.url.startswith("https://")
    assert answer == {"status": "ok"}


async def test_a_certificate_that_is_missing_is_named(one_service):
    with pytest.raises(InvalidValue, match="tls_certfile = '/no/such/file': cannot be used"):
        async with one_service(service={"tls_certfile": "/no/such/file"}):
            pass


class Echo:
    def look(self, asked: Asked) -> None:
        return None

    def answer(self, asked: Asked) -> Reply:
        return Reply(200, "text/plain", f"{asked.method} {asked.path}?".encode() + asked.body)


class Collector(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.closed = self.aborted = False

    def write(self, data) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def answers_to(pieces) -> bytes:
    async def feed() -> bytes:
        transport, others = Collector(), set()
        connection = HttpConnection(Echo(), ServiceConfig(max_body_bytes=1_000), others, 0.0)
        connection.connection_made(transport)
        for piece in pieces:
            if not transport.closed:
                connection.data_received(piece)
        return transport.written

    return asyncio.run(feed())


@pytest.mark.parametrize("unsent", [0, 1])
async def test_a_client_that_does_not_read_is_not_waited_for(unsent):
    transport = Collector()
    transport.unsent = unsent
    connection = HttpConnection(Echo(), ServiceConfig(keep_alive_s=10), set(), 100.0)
    connection.connection_made(transport)

    connection.check(110.0)
    still_open = not transport.closed
    connection.check(110.1)

    assert still_open
    assert (transport.closed, transport.aborted) == (True, bool(unsent))


SEVERAL = post("a", {"x": 1}) + b"GET /b?c HTTP/1.1\r\nhost: x\r\n\r\n" + post("d", [])


@given(st.lists(st.integers(0, len(SEVERAL)), max_size=8))
@settings(max_examples=50)
def test_it_does_not_matter_in_which_pieces_requests_come(cuts):
    ends = sorted({*cuts, len(SEVERAL)})
    pieces = [SEVERAL[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    assert answers_to(pieces) == answers_to([SEVERAL])


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(0, len(SEVERAL)))
@settings(max_examples=50)
def test_no_bytes_can_make_it_fail_otherwise(pieces, cut):
    answers_to([SEVERAL[:cut], *pieces])
