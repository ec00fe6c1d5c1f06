"""The API on real sockets: clients that leave, dawdle or stay while the server ends."""

import asyncio
import contextlib
import errno
import json
import socket
import ssl

import pytest
import uvloop

from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.server import Server, _last_of, address, listen

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
SOON_S = 10.0


class Site:
    """A server that runs, and connections to it."""

    def __init__(self, api):
        self.api = api
        self.generator = api.generator
        self.server = Server(api.app)
        self.listener = listen(api.app.config)
        self.port = self.listener.getsockname()[1]

    async def ask(self, fields, path="/v1/chat/completions", tls=None):
        """Send a request; return the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=tls)
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return reader, writer


@contextlib.asynccontextmanager
async def site(api):
    made = Site(api)
    started = asyncio.Event()
    running = asyncio.create_task(made.server.run(made.listener, started.set))
    await started.wait()
    try:
        yield made
    finally:
        made.server.stop()
        await running


async def soon(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def on_sockets(make_api):
    return lambda **settings: site(make_api(port=0, **settings))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_ends_its_request_at_once(on_sockets, script, stream, begun):
    async with on_sockets() as here:
        never = asyncio.Event()  # the next step will not come: nothing may wait for it
        here.generator.steps = [[script.delta("Hel")], never] if begun else [never]
        reader, writer = await here.ask({**CHAT, "stream": stream})
        await soon(lambda: here.generator.requests)
        if begun and stream:
            await reader.readuntil(b"Hel")

        writer.close()
        await soon(lambda: here.generator.aborted)

        assert here.generator.num_open == 0
        assert here.api.app.gate.in_flight == 0
        assert here.api.app.metrics.disconnects == 1
        path = "/v1/chat/completions"
        assert here.api.app.metrics.responses[path, 499] == 1


async def test_a_client_that_leaves_ends_every_one_of_its_prompts(on_sockets):
    async with on_sockets() as here:
        here.generator.steps = [asyncio.Event()]
        _, writer = await here.ask({"prompt": ["a", "b", "c"]}, "/v1/completions")
        await soon(lambda: here.generator.num_open == 3)

        writer.close()

        await soon(lambda: len(here.generator.aborted) == 3)


async def test_a_body_that_does_not_come_is_408(on_sockets):
    async with on_sockets(body_timeout_s=0.1) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")

        answer = await reader.readuntil(b"}}")
        writer.close()

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer


async def test_one_connection_serves_request_after_request(on_sockets):
    async with on_sockets() as here:
        reader, writer = await here.ask(CHAT)
        first = await reader.readuntil(b'"reasoning_tokens": 0}}}')
        writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        second = await reader.readuntil(b"}")
        writer.close()

    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 200")


async def test_what_is_in_flight_ends_well_when_the_server_ends(on_sockets, script):
    hold = asyncio.Event()
    async with on_sockets() as here:
        here.generator.steps = [[script.delta("Hel")], hold, *script.say("lo")]
        reader, writer = await here.ask({**CHAT, "stream": True})
        await reader.readuntil(b"Hel")

        here.server.stop()
        await soon(lambda: here.listener.fileno() < 0)
        with pytest.raises(ConnectionRefusedError):
            await here.ask(CHAT)
        hold.set()
        rest = await reader.read()
        writer.close()

    assert b'"lo"' in rest
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_request_that_was_on_its_way_when_the_server_began_to_end_is_answered(on_sockets):
    async with on_sockets() as here:
        reader, writer = await here.ask(CHAT)
        await reader.readuntil(b'"reasoning_tokens": 0}}}')

        here.server.stop()
        await soon(lambda: here.listener.fileno() < 0)
        writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = await reader.read()  # to the connection's end
        writer.close()

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer


@pytest.mark.parametrize("tls", [False, True], ids=["", "tls"])
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_connections_that_nobody_has_taken_yet_are_answered(make_api, certificate, runner, tls):
    key, cert = certificate
    settings = {"tls_certfile": cert, "tls_keyfile": key} if tls else {}

    def connect(port, count):
        """Connect before the server's loop turns again; ask in a thread, which may wait."""
        ends = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        return [asyncio.to_thread(asked, end) for end in ends]

    def asked(end):
        if tls:
            trusting = ssl.create_default_context(cafile=cert)
            end = trusting.wrap_socket(end, server_hostname="127.0.0.1")
        with end:
            end.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            return end.recv(1_000).partition(b"\r\n")[0]

    async def main():
        async with site(make_api(port=0, **settings)) as here:
            here.server.stop()
            shutting_down, inner = here.server._inner.shutdown, here.server._inner
            answers = []

            async def shutdown(sockets):
                answers.extend(map(asyncio.ensure_future, connect(here.port, 5)))
                await shutting_down(sockets)

            inner.shutdown = shutdown
            await soon(lambda: here.listener.fileno() < 0)
            return await asyncio.gather(*answers)

    assert runner(main()) == [b"HTTP/1.1 200 OK"] * 5


async def test_a_shared_port_has_no_part_in_what_comes_before_its_server_runs(make_api):
    first = make_api(port=0)
    taken = listen(first.app.config, shared=True)
    port = taken.getsockname()[1]
    second = make_api(port=port)
    with listen(second.app.config, shared=True):  # which is not served
        started = asyncio.Event()
        server = Server(first.app)
        running = asyncio.create_task(server.run(taken, started.set))
        await started.wait()

        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()

        server.stop()
        await running


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_small_writes_are_sent_at_once(make_api, runner):
    async def main():
        async with site(make_api(port=0)) as here:
            reader, writer = await here.ask(CHAT)
            await reader.readuntil(b'"reasoning_tokens": 0}}}')
            (connection,) = here.server._inner.server_state.connections
            end = connection.transport.get_extra_info("socket")
            delayed = not end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            return delayed

    assert runner(main()) is False


def test_a_port_in_use_is_one_clear_error():
    with listen(FrontendConfig(port=0)) as first:
        port = first.getsockname()[1]

        with pytest.raises(InvalidSetting, match=f"127.0.0.1:{port}.*in use"):
            listen(FrontendConfig(port=port))


async def test_with_a_certificate_it_speaks_tls(on_sockets, certificate):
    key, cert = certificate
    async with on_sockets(tls_certfile=cert, tls_keyfile=key) as here:
        assert address(here.api.app.config, here.listener) == f"https://127.0.0.1:{here.port}"
        trusting = ssl.create_default_context(cafile=cert)

        reader, writer = await here.ask(CHAT, tls=trusting)
        answer = await reader.readuntil(b"world")
        writer.close()

    assert answer.startswith(b"HTTP/1.1 200")


def test_a_certificate_that_is_missing_is_named(make_api):
    with pytest.raises(InvalidSetting, match="tls_certfile = '/no/such/file'"):
        Server(make_api(port=0, tls_certfile="/no/such/file").app)


class Refusing:
    """A listener with a connection that has gone, one that waits, and no descriptor for more."""

    def __init__(self, waiting: socket.socket) -> None:
        self._outcomes = [ConnectionAbortedError(), (waiting, None)]
        self.is_closed = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.is_closed = True

    def setblocking(self, flag):
        assert not flag

    def accept(self):
        outcome = self._outcomes.pop(0) if self._outcomes else OSError(errno.EMFILE, "too many")
        if isinstance(outcome, OSError):
            raise outcome
        return outcome


def test_a_server_that_ends_takes_whom_it_can_and_waits_for_no_descriptor():
    waiting, other = socket.socketpair()
    listener = Refusing(waiting)

    assert list(_last_of(listener)) == [waiting]

    assert listener.is_closed
    waiting.close()
    other.close()
