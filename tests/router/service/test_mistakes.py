"""Every mistake of a client is told by field, value and remedy, and costs nobody anything."""

import json

import msgpack
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}
PROMPT = list(range(64))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(one_service):
    async with one_service(service={"max_body_bytes": 1_000_000}) as served:
        for worker in ("a", "b"):
            await served.client.register(worker, 16)
        yield served


@pytest.mark.parametrize(
    ("name", "fields", "status", "code", "field"),
    [
        ("unregister", {"worker": "z"}, 404, "unknown_worker", "worker"),
        ("load", {"worker": "z", "queued_tokens": 0, "running": 0, "used_blocks": 0}, 404,
         "unknown_worker", "worker"),
        ("load", {"worker": "a", "queued_tokens": -1, "running": 0, "used_blocks": 0}, 400,
         "invalid_value", "queued_tokens"),
        ("free", {"request_id": "z"}, 404, "unknown_reservation", "request_id"),
        ("first_token", {"request_id": "z"}, 404, "unknown_reservation", "request_id"),
        ("reserve", {"request_id": "z"}, 404, "unknown_reservation", "request_id"),
        ("register", {"worker": "c", "block_size": 32}, 409, "incompatible_cache", "block_size"),
        ("register", {"worker": "c", "block_size": 16, "fingerprint": "00" * 16}, 409,
         "incompatible_cache", "fingerprint"),
        ("register", {"worker": "c", "block_size": 16, "role": "boss"}, 400, "invalid_value",
         "role"),
        ("register", {"worker": "", "block_size": 16}, 400, "invalid_value", "worker"),
        ("register", {"worker": "c", "block_size": 16, "events": {"address": "http://x"}}, 400,
         "invalid_value", "events.address"),
        ("register", {"worker": "c", "block_size": 16, "events": {"address": "tcp://x:1"}}, 400,
         "invalid_value", "replay_address"),
        ("register", {"worker": "c", "block_size": 16, "ttl_s": 0}, 400, "invalid_value", "ttl_s"),
        ("select", {"request_id": "r"}, 400, "invalid_value", "token_ids"),
        ("select", {"request_id": "r", "token_ids": []}, 400, "invalid_value", "prompt_tokens"),
        ("select", {"request_id": "r", "token_ids": [1.5]}, 400, "invalid_value", "token_ids"),
        ("select", {"request_id": "r", "token_ids": [1 << 32]}, 400, "invalid_value", "token_ids"),
        ("select", {"request_id": "r", "token_ids": "abc"}, 400, "invalid_value", "token_ids"),
        ("select", {"request_id": "r", "token_ids": [1], "prompt_tokens": 2}, 400, "invalid_value",
         "prompt_tokens"),
        ("select", {"request_id": "r", "block_hashes": "00"}, 400, "invalid_value",
         "prompt_tokens"),
        ("select", {"request_id": "r", "block_hashes": "0", "prompt_tokens": 16}, 400,
         "invalid_value", "block_hashes"),
        ("select", {"request_id": "r", "block_hashes": [7], "prompt_tokens": 16}, 400,
         "invalid_value", "block_hashes"),
        ("select", {"request_id": "r", "block_hashes": "", "prompt_tokens": 1, "block_size": 64},
         409, "incompatible_cache", "block_size"),
        ("select", {"request_id": "r", "block_hashes": "", "prompt_tokens": 1, "fingerprint": "aa"},
         409, "incompatible_cache", "fingerprint"),
        ("select", {"request_id": "r", "token_ids": [1], "deadline_s": -1}, 400, "invalid_value",
         "deadline_s"),
        ("select", {"request_id": "r", "token_ids": [1], "pin": "a"}, 400, "invalid_value", "pin"),
        ("events", {"worker": "a", "seq": 1, "timestamp": 0, "events": [["stored"]]}, 400,
         "malformed", "event"),
        ("events", {"worker": "a", "seq": 1, "timestamp": 0, "events": 5}, 400, "malformed",
         "events"),
        ("events", {"worker": "a", "seq": 1, "timestamp": 0, "events": [["removed", 16, "x", "g"]]},
         400, "malformed", "hash"),
    ],
)  # fmt: skip
async def test_every_mistake_names_the_field_and_the_remedy(
    served, name, fields, status, code, field
):
    found, error = await served.error_of(name, **fields)

    assert (found, error["code"], error["field"]) == (status, code, field)
    assert error["remedy"]
    assert (await served.ask("GET", "/health"))[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "malformed"),
        (b"[" * 100_000, JSON, 400, "malformed"),
        (b"[]", JSON, 400, "invalid_value"),
        (b"\xc1", {"content-type": "application/msgpack"}, 400, "malformed"),
        (b"\x81\x01\x02", {"content-type": "application/msgpack"}, 400, "malformed"),
        (b"\xdd\xff\xff\xff\xff", {"content-type": "application/msgpack"}, 400, "malformed"),
        (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_type"),
        (b'{"\\ud800": 1}', JSON, 400, "invalid_value"),
        (b'{"request_id": "\\ud800"}', JSON, 400, "invalid_value"),
        (b'{"request_id": "r", "ttl_s": 1e999}', JSON, 400, "invalid_value"),
        (b'{"request_id": "r", "priority": ' + b"9" * 4_000 + b"}", JSON, 400, "invalid_value"),
        (b'{"request_id": "r", "priority": ' + b"9" * 9_000 + b"}", JSON, 400, "malformed"),
        (b" " * 2_000_000, JSON, 413, "body_too_large"),
    ],
)
async def test_a_body_that_is_none_costs_nobody_anything(served, body, headers, status, code):
    found, _, answer = await served.ask("POST", "/v1/router/select", body, headers)

    read = msgpack.unpackb(answer) if answer[:1] != b"{" else json.loads(answer)
    assert (found, read["error"]["code"]) == (status, code)
    assert (await served.client.select("r", PROMPT, reserve=False)).request_id == "r"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/router/nothing", 404, "unknown_path"),
        ("GET", "/v1/router/select", 405, "wrong_method"),
        ("POST", "/v1/router/explain", 405, "wrong_method"),
        ("DELETE", "/metrics", 405, "wrong_method"),
        ("GET", "/v1/router/explain?first=1", 400, "invalid_value"),
        ("GET", "/v1/router/explain?last=0", 400, "invalid_value"),
        ("GET", "/v1/router/explain?last=%C2%B2", 400, "invalid_value"),
        ("GET", "/v1/router/explain?request=nobody", 400, "invalid_value"),
        ("GET", "/v1/router/workers?all=1", 400, "invalid_value"),
    ],
)
async def test_a_path_that_is_not_there_is_told_with_those_that_are(
    served, method, path, status, code
):
    found, _, body = await served.ask(method, path)

    assert (found, json.loads(body)["error"]["code"]) == (status, code)
