"""Who may ask, how much, and from where."""

import asyncio

import pytest

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.keys import ApiKey, KeyRing, read_key_file, read_keys
from stafette.platform.frontend.limits import Gate, TokenBucket

ALICE = ApiKey(name="alice", secret="sk-alice")
BOB = ApiKey(name="bob", secret="sk-bob", requests_per_minute=2)
EVE = ApiKey(name="eve", secret="sk-eve", max_concurrent=1)


@pytest.fixture
def guarded(make_api):
    return make_api(keys=(ALICE, BOB, EVE))


def bearer(key):
    return {"authorization": f"Bearer {key.secret}"}


@pytest.mark.parametrize(
    "header", [None, "Bearer sk-mallory", "Bearer ", "Basic sk-alice", "sk-alice", "Bearer \xe9"]
)
async def test_without_a_known_key_nobody_gets_in(guarded, header):
    headers = {} if header is None else {"authorization": header}

    reply = await guarded.chat(headers=headers)

    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert guarded.generator.requests == []


async def test_a_known_key_gets_in_and_is_the_requests_tenant(guarded):
    reply = await guarded.chat(headers=bearer(ALICE))

    assert reply.status == 200
    assert guarded.generator.hints[0].tenant == "alice"


@pytest.mark.parametrize("path", ["/health", "/live", "/ready", "/metrics", "/version"])
async def test_health_and_metrics_need_no_key(guarded, path):
    assert (await guarded.get(path)).status == 200


@pytest.mark.parametrize("path", ["/v1/models", "/tokenize"])
async def test_everything_else_does(guarded, path):
    reply = await (guarded.get(path) if path.startswith("/v1") else guarded.post(path, prompt="a"))

    assert reply.status == 401


async def test_a_key_that_has_used_its_rate_is_told_when_to_come_again(guarded):
    statuses = [(await guarded.chat(headers=bearer(BOB))).status for _ in range(2)]

    refused = await guarded.chat(headers=bearer(BOB))

    assert statuses == [200, 200]
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert (await guarded.chat(headers=bearer(ALICE))).status == 200


async def held(api, script, **arguments):
    """Start a request that stays in flight until the event is set."""
    hold = asyncio.Event()
    api.generator.steps = [hold, *script.say("done")]
    task = asyncio.create_task(api.chat(**arguments))
    while not api.generator.requests:
        await asyncio.sleep(0)
    return hold, task


async def test_a_key_has_only_so_many_requests_in_flight(guarded, script):
    hold, first = await held(guarded, script, headers=bearer(EVE))

    refused = await guarded.chat(headers=bearer(EVE))
    hold.set()

    assert (refused.status, refused.error["code"]) == (429, "concurrency_limit_exceeded")
    assert (await first).status == 200
    assert (await guarded.chat(headers=bearer(EVE))).status == 200


async def test_the_server_has_only_so_many_requests_in_flight(make_api, script):
    api = make_api(max_in_flight=1)
    hold, first = await held(api, script)

    refused = await api.chat()
    models = await api.get("/v1/models")
    hold.set()

    assert (refused.status, refused.error["code"]) == (429, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert models.status == 200
    assert (await first).status == 200


def test_a_bucket_fills_up_steadily():
    bucket = TokenBucket(60, now=0.0)
    for _ in range(60):
        assert bucket.take(0.0) == 0.0

    assert bucket.take(0.0) == pytest.approx(1.0)
    assert bucket.take(0.75) == pytest.approx(0.25)
    assert bucket.take(1.0) == 0.0


def test_a_rate_below_one_a_minute_lets_one_in_at_once():
    bucket = TokenBucket(0.5, now=0.0)

    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) == pytest.approx(120.0)


def test_a_place_is_free_again_after_an_error():
    gate = Gate(1, clock=lambda: 0.0)
    with pytest.raises(ZeroDivisionError), gate.admit(EVE):
        raise ZeroDivisionError

    with gate.admit(EVE):
        assert gate.in_flight == 1


def test_a_key_file_holds_names_keys_and_limits(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# who\nalice sk-1 requests_per_minute=60 max_concurrent=2\n\nsk-2  # bare\n")

    alice, other = read_key_file(str(file))

    assert (alice.name, alice.requests_per_minute, alice.max_concurrent) == ("alice", 60.0, 2)
    assert (other.name, other.requests_per_minute) == ("key-4", None)
    assert "sk-1" not in repr(alice)


@pytest.mark.parametrize(
    "text",
    [
        "alice sk-1 speed=3",
        "alice sk-1 max_concurrent=many",
        "alice sk-1 max_concurrent=0",
        "alice sk-1 requests_per_minute=nan",
    ],
)
def test_a_wrong_line_is_named_and_its_key_is_not_shown(text):
    with pytest.raises(InvalidSetting, match="api_keys") as refused:
        read_keys(text)

    assert "sk-1" not in str(refused.value)


@pytest.mark.parametrize(
    "second", [ApiKey(name="alice", secret="x"), ApiKey(name="b", secret="sk-alice")]
)
def test_two_keys_cannot_be_one(second):
    with pytest.raises(InvalidSetting, match="api_keys"):
        KeyRing((ALICE, second))


def test_a_file_without_keys_does_not_open_the_door(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# nobody yet\n")

    with pytest.raises(InvalidSetting, match="holds no key"):
        read_key_file(str(file))
    with pytest.raises(InvalidSetting, match="cannot be read"):
        read_key_file(str(tmp_path / "missing"))


async def test_a_long_body_is_refused_before_it_is_read(make_api):
    api = make_api(max_body_bytes=100)

    told = await api.post("/tokenize", body=b"{}", headers={"content-length": "101"})
    sent = await api.post("/tokenize", body=[b"x" * 60, b"x" * 60, b"never read"])

    for reply in (told, sent):
        assert (reply.status, reply.error["code"]) == (413, "body_too_large")
        assert "100" in reply.error["message"]


async def test_a_body_that_comes_in_parts_is_whole(api):
    assert (await api.post("/tokenize", body=[b'{"pro', b'mpt": ', b'"a"}'])).status == 200


async def test_a_page_of_an_allowed_origin_may_read_the_answer(make_api):
    api = make_api(cors_origins=("https://a.example",))

    own = await api.chat(headers={"origin": "https://a.example"})
    other = await api.chat(headers={"origin": "https://b.example"})
    failed = await api.chat(headers={"origin": "https://a.example"}, temperature=-1)

    assert own.headers["access-control-allow-origin"] == "https://a.example"
    assert failed.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in other.headers


async def test_a_preflight_needs_no_key(make_api):
    api = make_api(cors_origins=("*",), keys=(ALICE,))
    asks = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }

    reply = await api.send("OPTIONS", "/v1/chat/completions", b"", asks)

    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-allow-headers"] == "authorization"
    assert "POST" in reply.headers["access-control-allow-methods"]
