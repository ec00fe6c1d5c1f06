"""The API in this process, on a generator that says what a test tells it to."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.generator import Status
from stafette.platform.frontend.served import Served
from stafette.router.errors import InvalidValue
from stafette.workers.batch import TokenLogprobs
from stafette.workers.request import OutputDelta
from stafette.workers.weights.opening import open_tokenizer

MAX_MODEL_LEN = 512


def delta(text="", index=0, **fields):
    """One step of one answer; a token unless told otherwise."""
    fields.setdefault("token_ids", [1])
    return OutputDelta("", index, text=text, **fields)


def say(*texts, finish="stop", index=0, stop_reason=None):
    """Return the steps of an answer, one text each."""
    steps = [[delta(text, index)] for text in texts[:-1]]
    last = delta(texts[-1], index, finish_reason=finish, stop_reason=stop_reason)
    return [*steps, [last]]


def score(token, logprob=-0.5, **top):
    return TokenLogprobs(token, logprob, 1, {int(name[1:]): value for name, value in top.items()})


@dataclass
class FakeGenerator:
    """Plays `steps` for every request: deltas, an Event to wait for, or an error to raise.

    They may also be a function of the request.
    """

    steps: list = field(default_factory=lambda: say("Hello", " world"))
    state: Status = field(default_factory=Status)
    placed: dict | None = None
    requests: list = field(default_factory=list)
    hints: list = field(default_factory=list)
    num_open: int = 0
    aborted: list = field(default_factory=list)  # ids

    async def stream(self, request, hints):
        self.requests.append(request)
        self.hints.append(hints)
        self.num_open += 1
        finished = 0
        try:
            for step in self.steps(request) if callable(self.steps) else self.steps:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    await asyncio.sleep(0)
                    finished += sum(each.finish_reason is not None for each in step)
                    yield step
        finally:
            self.num_open -= 1
            if finished < request.params.n:
                self.aborted.append(request.request_id)

    def placement(self, request_id):
        return self.placed

    def workers(self):
        return [{"name": "w0", "role": "both", "running": 1}]

    def decisions(self, query):
        if query.startswith("last=") and query[5:].isdecimal():
            return {"decisions": [], "counters": {"placed": 0}}
        if query:
            raise InvalidValue("last", query, "must be a whole number in 1..1000")
        return {"decisions": [{"request_id": "a"}], "counters": {"placed": 1}}

    def status(self):
        return self.state

    @property
    def request(self):
        """The only request that came."""
        (request,) = self.requests
        return request


@dataclass
class Reply:
    status: int = 0
    headers: dict = field(default_factory=dict)
    writes: list = field(default_factory=list)  # what the server sent at once

    @property
    def body(self):
        return b"".join(self.writes)

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]

    def events(self):
        """Return the events' data; the last, [DONE], is checked and left out where it is due."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == "", "the last event is whole"
        data = [part.splitlines()[-1].removeprefix("data: ") for part in parts]
        if not parts[0].startswith("event: "):
            assert data.pop() == "[DONE]"
        return [json.loads(each) for each in data]

    def texts(self):
        """Return the text of each chunk that has one, of chat or completions."""
        choices = [choice for event in self.events() for choice in event["choices"]]
        said = [choice.get("text") or choice.get("delta", {}).get("content") for choice in choices]
        return [text for text in said if text]


class Api:
    """A client without sockets."""

    root_path = ""

    def __init__(self, tokenizer, generator, keys=None, advice=None, **settings):
        self.generator = generator
        config = FrontendConfig(served_model_name=("small", "alias"), **settings)
        served = Served.of(config, "small-model", tokenizer, MAX_MODEL_LEN, advice)
        self.app = Frontend(served, generator, config, keys)

    async def get(self, path, **headers):
        return await self.send("GET", path, b"", headers)

    async def post(self, path, body=None, headers=None, **fields):
        data = json.dumps(fields).encode() if body is None else body
        return await self.send("POST", path, data, headers or {})

    async def chat(self, text="Hi", headers=None, **fields):
        fields.setdefault("messages", [{"role": "user", "content": text}])
        return await self.post("/v1/chat/completions", headers=headers, **fields)

    async def send(self, method, path, data, headers):
        """Send `data`, or its parts when it is a list."""
        reply = Reply()
        parts = list(data) if isinstance(data, list) else [data]

        async def receive():
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await asyncio.Event().wait()  # the client waits for its answer

        async def send(message):
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            elif message["body"]:
                reply.writes.append(message["body"])

        raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw}
        scope["root_path"] = self.root_path
        await self.app(scope, receive, send)
        return reply


@pytest.fixture(scope="session")
def tokenizer():
    return open_tokenizer("smollm2")


@pytest.fixture
def generator():
    made = FakeGenerator()
    yield made
    assert made.num_open == 0


@pytest.fixture
def make_api(tokenizer, generator):
    """Makes an API with other settings."""
    made = []

    def make(**settings):
        made.append(Api(tokenizer, generator, **settings))
        return made[-1]

    yield make
    assert [each.app.gate.in_flight for each in made] == [0] * len(made)


@pytest.fixture
def api(make_api):
    return make_api()


@pytest.fixture(scope="session")
def script():
    """What generators are told: `say`, `delta` and `score`."""

    class Script:
        say = staticmethod(say)
        delta = staticmethod(delta)
        score = staticmethod(score)
        Generator = FakeGenerator

    return Script
