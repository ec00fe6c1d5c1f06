"""Who connects without belonging to the cluster gets nothing; with TLS nobody reads along."""

import asyncio
import shutil
import subprocess

import grpc
import pytest

from stafette.workers.errors import ConfigError, WorkerLost
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.server import WorkerServer
from stafette.workers.service.streams.tls import client_side, server_side

TOKEN = b"the cluster's token"
PATIENCE_S = 30.0


async def said_to(address: str, data: bytes) -> bytes:
    """Say something on a bare connection; return all that is answered until it is closed."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    finally:
        writer.close()


over_tcp = pytest.mark.parametrize("stream", ["tcp"], indirect=True)
over_grpc = pytest.mark.parametrize("stream", ["grpc"], indirect=True)


@over_tcp
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        (2_000).to_bytes(4, "big"),  # longer than a greeting is
        (3).to_bytes(4, "big") + b"abc",
        b"\x80\x00\x00\x02no",  # a last word
    ],
)
async def test_strangers_are_turned_away_and_harm_nobody(
    server, connect, make_order, collected, data
):
    client = await connect()

    answered = await said_to(server.address, data)

    assert answered[:1] in (b"", b"\x80")  # nothing, or why
    assert server.refused == (0 if data[:1] == b"\x80" else 1)
    assert await collected(client, make_order("a", 1)) == [2, 3, 4, 5, 6]


@over_grpc
@pytest.mark.parametrize("said", [b"", b"\xc1", b"x" * 2_000])  # the last is longer than a greeting
async def test_strangers_that_speak_grpc_are_told_why_they_are_turned_away(
    server, connect, make_order, collected, said
):
    client = await connect()
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/stafette.Worker/Stream")()

        await call.write(said)

        with pytest.raises(grpc.aio.AioRpcError, match="MalformedMessage"):
            await call.read()
    assert server.refused == 1
    assert await collected(client, make_order("a", 1)) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("stream", ["grpc", "tcp"], indirect=True)
async def test_two_ends_that_speak_differently_do_not_wait_for_each_other(server, connect, stream):
    with pytest.raises(WorkerLost, match="no stream to"):
        await connect(stream={"grpc": "tcp", "tcp": "grpc"}[stream])


@over_tcp
async def test_who_says_nothing_is_not_waited_for(server):
    assert b"TimeoutError" in await said_to(server.address, b"\x00\x00")
    assert server.refused == 1


async def test_a_server_that_stops_lets_nobody_in_any_more(served, configured):
    config = configured()
    server = await WorkerServer.start(served, config)
    client = await WorkerClient.connect("w", server.address, "f", config)

    await server.stop()
    await server.stop()

    with pytest.raises(WorkerLost, match="no stream to"):
        await WorkerClient.connect("w", server.address, "f", config)
    async with asyncio.timeout(PATIENCE_S):
        while client.lost is None:
            await asyncio.sleep(0.001)
    await client.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[bytes, bytes]:
    """Return a key, and the certificate of 127.0.0.1 that vouches for itself."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with the openssl program, which is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    whose = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    out = ["-keyout", folder / "key", "-out", folder / "certificate"]
    subprocess.run(["openssl", "req", "-x509", *curve, *out, *whose], check=True)
    return (folder / "key").read_bytes(), (folder / "certificate").read_bytes()


async def test_with_tls_the_same_is_said_encrypted(served, pair, make_order, configured, collected):
    key, certificate = pair
    config = configured(tls_key=key, tls_certificate=certificate)
    server = await WorkerServer.start(served, config)
    trusting = configured(tls_authority=certificate)

    client = await WorkerClient.connect("w", server.address, "f", trusting)

    assert await collected(client, make_order("a", 1)) == [2, 3, 4, 5, 6]
    with pytest.raises(WorkerLost, match="no stream to"):  # in the clear
        await WorkerClient.connect("w", server.address, "f", configured())
    await client.close()
    await server.stop()


async def test_a_server_that_nobody_vouches_for_is_not_talked_to(served, pair, configured):
    plain = await WorkerServer.start(served, configured(handshake_timeout_s=0.5))
    trusting = configured(tls_authority=pair[1], handshake_timeout_s=5.0)

    with pytest.raises(WorkerLost, match="no stream to"):
        await WorkerClient.connect("w", plain.address, "f", trusting)

    await plain.stop()


def test_what_is_no_certificate_is_named(pair):
    with pytest.raises(ConfigError, match="tls_key, tls_certificate"):
        server_side(ServiceConfig(token=TOKEN, tls_key=b"key", tls_certificate=b"certificate"))
    with pytest.raises(ConfigError, match="tls_authority"):
        client_side(ServiceConfig(token=TOKEN, tls_authority=b"nobody"))
