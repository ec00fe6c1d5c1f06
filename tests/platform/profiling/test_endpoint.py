"""A server is measured through its streams; a double keeps what OpenAI's API promises."""

import threading

import pytest

from stafette.platform import cli
from stafette.platform.commands.talking import AskingFailed
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.document import Limits
from stafette.platform.profiling.endpoint_target import EndpointTarget
from stafette.workers.mocker.speed_profile import Profile

LIMITS = Limits(max_num_batched_tokens=512, block_size=16)


class FakeServer:
    """10 ms and 1 ms a token until the first, 2 ms a step; each client lives in its own time."""

    url = "http://double"

    def __init__(self, models=("m",), most_tokens=10_000, slots=64):
        self.models = models
        self.bodies = []
        self._most_tokens, self._slots = most_tokens, slots
        self._time = threading.local()
        self._seen = 0
        self._lock = threading.Lock()
        self._cached = set()

    def clock(self):
        return getattr(self._time, "now", 0.0)

    def get(self, path):
        assert path == "/v1/models"
        return {"data": [{"id": name} for name in self.models]}

    def events(self, path, body):
        assert path == "/v1/completions"
        assert body["stream"]
        assert body["ignore_eos"]
        with self._lock:
            self.bodies.append(body)
            row = self._seen // self._slots  # who comes when all slots are taken waits its turn
            self._seen += body["max_tokens"] > 1
        self._time.now = self.clock() + self._first_s(body["prompt"]) + 10.0 * row
        for number in range(min(body["max_tokens"], self._most_tokens)):
            if number:
                self._time.now += 0.002
            yield {"choices": [{"text": " a"}]}
        yield {"choices": [], "usage": {}}

    def _first_s(self, prompt):
        computed = len(prompt)
        for length in range(len(prompt), 0, -1):
            if tuple(prompt[:length]) in self._cached:
                computed = len(prompt) - length
                break
        self._cached |= {tuple(prompt[:length]) for length in range(16, len(prompt), 16)}
        return 0.010 + 0.001 * computed


def target(server, model=None):
    return EndpointTarget(server, model, LIMITS, Profile(), samples=2, clock=server.clock)


def test_the_time_to_the_first_token_is_measured():
    point = target(FakeServer()).prefill(128, 0)

    assert (point.ms, point.low_ms, point.high_ms) == pytest.approx((138.0, 138.0, 138.0))


def test_a_prefix_that_was_asked_before_is_cached():
    point = target(FakeServer()).prefill(32, 96)

    assert point.ms == pytest.approx(42.0)


def test_gaps_count_while_all_streams_run():
    one, four = target(FakeServer()).decode([4, 1], 32)

    assert (one.batch, four.batch) == (1, 4)
    assert four.ms == pytest.approx(2.0)
    assert 4 * 32 < four.kv_tokens < 4 * (32 + 30)


def test_a_batch_that_never_runs_together_is_not_measured():
    points = target(FakeServer(slots=2)).decode([2, 4], 32)

    assert [point.batch for point in points] == [2]


def test_a_server_of_two_models_must_be_told_which():
    with pytest.raises(InvalidSetting, match=r"--model.*the server has a, b"):
        target(FakeServer(models=("a", "b")))

    assert target(FakeServer(models=("a", "b")), "b").subject["model"] == "b"


def test_a_server_without_models_is_no_language_models():
    server = FakeServer()
    server.get = lambda path: {"detail": "hello"}

    with pytest.raises(InvalidSetting, match="does not list its models"):
        target(server)


def test_a_server_that_ends_answers_early_is_told_of():
    with pytest.raises(InvalidSetting, match="does it ignore_eos"):
        target(FakeServer(most_tokens=3)).decode([1], 32)


def test_what_a_stream_refuses_is_raised():
    server = FakeServer()

    def refuse(path, body):
        raise AskingFailed("url", server.url, "answers 429: all workers are full")
        yield

    server.events = refuse

    with pytest.raises(AskingFailed, match="429"):
        target(server).decode([2], 32)


def test_a_url_where_nobody_answers_is_told_of(tmp_path, capsys, unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}"

    status = cli.main(["profile", str(tmp_path / "p.json"), "--url", url])

    assert status == 1
    assert "does not answer" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_what_is_no_url_is_told_of(tmp_path, capsys):
    assert cli.main(["profile", str(tmp_path / "p.json"), "--url", "localhost"]) == 1

    assert "must be like http://" in capsys.readouterr().err
