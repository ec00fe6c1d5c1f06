"""Over a real socket: both kinds of bodies, and every mistake told by field, value and remedy."""

import asyncio
import http.client
import json
import socket
from urllib.parse import urlsplit

import msgpack
import pytest

from stafette.router.service.client import Refused

PROMPT = list(range(64))
JSON = {"content-type": "application/json"}


@pytest.fixture
async def served(serve):
    served = await serve()
    for worker in ("a", "b"):
        await served.client.register(worker, 16)
    return served


async def test_json_and_msgpack_say_the_same(served):
    asked = {"request_id": "r", "token_ids": PROMPT, "reserve": False}
    packed = {"content-type": "application/msgpack"}

    as_json = await served.ask("POST", "/v1/router/select", json.dumps(asked).encode())
    as_msgpack = await served.ask("POST", "/v1/router/select", msgpack.packb(asked), packed)
    crossed = await served.ask(
        "POST",
        "/v1/router/select",
        msgpack.packb(asked),
        packed | {"accept": "application/json"},
    )

    assert as_msgpack[1]["content-type"] == "application/msgpack"
    assert json.loads(as_json[2]) == msgpack.unpackb(as_msgpack[2]) == json.loads(crossed[2])


async def test_tokens_and_their_hashes_are_one_prompt(served):
    chain = served.service.prompts.chain(PROMPT)
    await served.client.select("r0", PROMPT)
    await served.client.free("r0")
    hexed = [chain[at : at + 16].hex() for at in range(0, len(chain), 16)]

    found = [
        await served.client.select("r1", PROMPT, reserve=False),
        await served.client.select("r1", block_hashes=chain, prompt_tokens=64, reserve=False),
        await served.client.select("r1", block_hashes=hexed, prompt_tokens=64, reserve=False),
        await served.client.select("r1", block_hashes=chain.hex(), prompt_tokens=64, reserve=False),
    ]

    assert len(set(found)) == 1
    assert found[0].cached_tokens == 63


async def test_a_reservation_is_made_once_and_freed_once(served):
    await served.client.select("r", PROMPT)

    with pytest.raises(Refused, match="request_id = 'r': is placed already: free it first"):
        await served.client.select("r", PROMPT)
    await served.client.free("r")
    with pytest.raises(Refused, match="no request r is reserved: it was freed before") as twice:
        await served.client.free("r")

    assert (twice.value.status, twice.value.code) == (404, "unknown_reservation")


async def test_who_leaves_no_worker_is_told_which_filter_kept_each_one_out(served):
    await served.client.post("state", worker="a", draining=True)
    await served.client.post("state", worker="b", healthy=False)

    status, error = await served.error_of("select", request_id="r", token_ids=[1])

    assert (status, error["code"]) == (409, "no_candidate")
    assert error["reasons"] == {"a": "is draining", "b": "is not healthy"}
    assert (await served.ask("GET", "/ready"))[0] == 503


async def test_an_older_life_of_a_worker_is_refused(served):
    await served.client.register("c", 16, epoch=7, pushes_events=True)

    for name, fields in {
        "register": {"block_size": 16, "epoch": 6},
        "events": {"seq": 1, "timestamp": 0, "events": [], "epoch": 6},
        "load": {"queued_tokens": 0, "running": 0, "used_blocks": 0, "epoch": 6},
    }.items():
        status, error = await served.error_of(name, worker="c", **fields)
        assert (status, error["code"], error["field"]) == (409, "stale_epoch", "epoch")
        assert "epoch 7 of this worker is known" in error["remedy"]


async def test_a_clock_that_goes_backwards_is_told(served):
    load = {"worker": "a", "queued_tokens": 0, "running": 0, "used_blocks": 0}
    batch = {"worker": "a", "events": []}
    await served.client.post("load", **load, at=10.0)
    await served.client.post("events", **batch, seq=1, timestamp=10.0)

    told_of_load = await served.error_of("load", **load, at=9.0)
    told_of_batch = await served.error_of("events", **batch, seq=2, timestamp=9.0)

    for (status, error), field in ((told_of_load, "at"), (told_of_batch, "timestamp")):
        assert (status, error["code"], error["field"]) == (409, "clock_backwards", field)
        assert "10.0" in error["remedy"]


async def test_a_body_without_a_length_is_cut_off_where_it_is_too_large(serve):
    served = await serve(service={"max_body_bytes": 1_000})

    def pieces():
        while True:
            yield b"x" * 10_000

    def send():
        connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=30)
        try:
            connection.request("POST", "/v1/router/select", pieces(), JSON, encode_chunked=True)
            return connection.getresponse().status
        except (BrokenPipeError, ConnectionResetError):
            return 413  # it hung up before all was sent
        finally:
            connection.close()

    assert await asyncio.to_thread(send) == 413


async def test_a_body_that_does_not_come_is_not_waited_for(serve):
    served = await serve(service={"body_timeout_s": 0.05})
    host, port = urlsplit(served.url).netloc.split(":")

    def send():
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"POST /v1/router/free HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n")
            connection.sendall(b"\r\n{")
            return connection.recv(12)

    assert await asyncio.to_thread(send) == b"HTTP/1.1 408"


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Basic right", "right", "Bearer", "Bearer r\xe4ght"]
)
async def test_without_the_token_nothing_is_told_but_health_and_metrics(serve, header):
    served = await serve(token="right")
    headers = JSON if header is None else JSON | {"authorization": header}

    for method, path in (
        ("POST", "/v1/router/select"),
        ("GET", "/v1/router/explain"),
        ("GET", "/x"),
    ):
        status, answered, body = await served.ask(method, path, b"", headers)
        assert (status, json.loads(body)["error"]["code"]) == (401, "unauthorized")
        assert answered["www-authenticate"] == "Bearer"
    for path in ("/health", "/live", "/metrics"):
        assert (await served.ask("GET", path, b"", headers))[0] == 200


async def test_with_the_token_everything_is(serve):
    served = await serve(token="right")

    await served.client.register("a", 16)
    status, _, _ = await served.ask(
        "GET", "/v1/router/workers", b"", {"authorization": "bearer right"}
    )

    assert status == 200


async def test_more_requests_than_are_taken_are_told_to_come_again(serve, clock):
    served = await serve(
        clock=clock, service={"max_in_flight": 1}, admission={"max_target_queue_ms": 0}
    )
    await served.client.register("a", 16)
    await served.client.select("r0", PROMPT)
    waiting = asyncio.create_task(served.client.select("r1", PROMPT))
    while not len(served.service.requests.room):
        await asyncio.sleep(0.001)

    with pytest.raises(Refused) as refused:
        await served.another_client().post("heartbeat", client="c")

    assert (refused.value.status, refused.value.code) == (429, "too_busy")
    waiting.cancel()


async def test_a_fault_of_ours_is_500_and_costs_no_other_request(served, monkeypatch, caplog):
    def fail(query):
        raise ZeroDivisionError

    monkeypatch.setattr(served.service.requests.leases, "renew_holder", fail)

    status, _, body = await served.ask("POST", "/v1/router/heartbeat", b'{"client": "c"}')

    assert (status, json.loads(body)["error"]["code"]) == (500, "internal")
    assert "failed" in caplog.text
    assert (await served.client.select("r", PROMPT)).request_id == "r"
