"""The tuning loop: what is tried, what is kept, and why."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stafette.platform.bench.tuning.knobs import ABLATION, Knob, as_words, label_of
from stafette.platform.bench.tuning.searching import Search, Trial
from stafette.platform.bench.tuning.servers import Servers
from stafette.platform.cli import main
from stafette.platform.config import load
from stafette.platform.frontend.errors import InvalidSetting
from stafette.workers import EngineConfig

SEQS = Knob("max_num_seqs", (16, 32, 64, 128, 256))
CHUNKED = Knob("enable_chunked_prefill", (True, False), ordered=False)


class Bench:
    """Scores flags by a function; remembers what was tried."""

    def __init__(self, score):
        self.score = score
        self.tried = []

    async def run(self, flags, times):
        self.tried.append((dict(flags), times))
        score = self.score(flags, times)
        return Trial(
            label=label_of(flags),
            flags=flags,
            score=score,
            shown=f"{score} tok/s",
            why="" if score else "no room",
        )


async def find(score, *knobs, start=64, **settings):
    bench = Bench(score)
    told = {"max_num_seqs": start, "enable_chunked_prefill": True}
    outcome = await Search(bench.run, knobs, told, **settings).find()
    return outcome, [flags.get("max_num_seqs") for flags, _ in bench.tried if flags]


async def test_a_side_that_helps_is_followed_until_it_does_not():
    best = {None: 100, 32: 90, 128: 120, 256: 121}

    outcome, tried = await find(lambda flags, _: best[flags.get("max_num_seqs")], SEQS)

    assert outcome.best.flags == {"max_num_seqs": 128}
    assert tried == [128, 256]
    (reason,) = outcome.reasons()
    assert reason.startswith("max_num_seqs 128 (128: 120 tok/s, +20.0%; 256: 121 tok/s, +0.8%")


async def test_a_step_that_does_not_help_ends_its_side():
    best = {None: 100, 32: 90, 128: 80}

    outcome, tried = await find(lambda flags, _: best[flags.get("max_num_seqs")], SEQS)

    assert outcome.best.flags == {}
    assert tried == [128, 32]
    assert "not tried behind that: 256, 16" in outcome.reasons()[0]


async def test_a_gain_within_the_noise_of_two_equal_servers_is_none():
    def score(flags, times):
        return {None: 100 - 20 * times, 128: 115}.get(flags.get("max_num_seqs"), 1)

    outcome, _ = await find(score, SEQS)

    assert outcome.noise == pytest.approx(0.2)
    assert outcome.best.flags == {}
    assert "no clear gain" in outcome.reasons()[0]


async def test_flags_under_which_no_server_starts_are_told():
    best = {None: 100, 32: 200, 16: 150, 128: None}

    outcome, tried = await find(lambda flags, _: best[flags.get("max_num_seqs")], SEQS)

    assert outcome.best.flags == {"max_num_seqs": 32}
    assert "128: fails, no room" in outcome.reasons()[0]


async def test_a_value_that_was_measured_is_not_tried_again():
    def score(flags, _):
        return 100 + (50 if flags.get("max_num_seqs") == 128 else 0)

    outcome, tried = await find(score, CHUNKED, SEQS)

    assert outcome.best.flags == {"max_num_seqs": 128}
    assert tried.count(128) == 1


async def test_without_a_server_there_is_nothing_to_compare_with():
    outcome, tried = await find(lambda flags, _: None, SEQS)

    assert outcome.base.score is None
    assert tried == []


def test_flags_are_spelled_as_stafette_and_vllm_take_them():
    flags = {"max_num_seqs": 8, "enforce_eager": True, "async_scheduling": False}

    assert as_words(flags) == ["--max-num-seqs", "8", "--enforce-eager", "--no-async-scheduling"]
    assert label_of({"gpu_memory_utilization": 0.95}) == "gpu_memory_utilization-0_95"


def test_the_ablation_has_six_servers_that_the_engine_knows():
    assert len(ABLATION) == 6
    for flags in ABLATION.values():
        EngineConfig.of(**flags)


@pytest.mark.parametrize(
    ("command", "url", "told"),
    [("serve {flags}", None, "needs the other"), ("serve", "http://h", "{flags}")],
)
def test_a_command_needs_its_url_and_a_place_for_flags(command, url, told):
    with pytest.raises(InvalidSetting, match=re.escape(told)):
        Servers(base={}, command=command, url=url)


@pytest.fixture
def tune(tmp_path, capfd):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[3]
    python = f"env PYTHONPATH={root} {sys.executable} -P -m tests.platform.bench.flagged_server"

    def run(*more):
        words = ["tune", "--output-dir", str(tmp_path), "--quick", "--concurrency", "2"]
        words += ["--no-report"]
        words += ["--requests", "20", "--osl", "4", "--url", f"http://127.0.0.1:{port}"]
        status = main([*words, "--restart-command", f"{python} --port {port} {{flags}}", *more])
        said = capfd.readouterr()
        return status, said.out + said.err

    return run


def test_servers_are_started_measured_and_ended_and_the_best_flags_are_written(tune, tmp_path):
    more = ["--max-num-seqs", "2", "--knobs", "max_num_seqs"]
    status, said = tune(*more)

    assert status == 0, said
    assert "recommended: --max-num-seqs 8" in said
    assert "256: fails, max_num_seqs = 256: there is no room for that" in said
    assert "two equal servers differ by" in said
    path = tmp_path / "tune/recommended.yaml"
    assert yaml.safe_load(path.read_text())["engine"]["max_num_seqs"] == 8
    assert load(path).config.engine is not None
    assert "no room" in path.read_text()
    assert not _running()

    again, said_again = tune(*more)

    assert again == 0
    assert "trying" not in said_again  # all of it was measured

    other, said_of_other = tune("--max-num-seqs", "4", "--knobs", "max_num_seqs")

    assert other == 1
    assert "server.flags.max_num_seqs was 2, and is 4" in said_of_other


def _running():
    told = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return [line for line in told.splitlines() if "flagged_server --port" in line]


def test_a_server_that_is_there_already_is_not_measured(tune, serve, tmp_path):
    server = serve()

    status, said = tune("--url", f"http://127.0.0.1:{server.port}")

    assert status == 1
    assert "answers already" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--knobs", "speed"], "--knobs = 'speed'"),
        (["--margin", "2"], "--margin = 2.0"),
        (["--objective", "goodput"], "--goodput"),
        (["--start-s", "0"], "--start-s = 0.0"),
        (["--max-num-seqs", "0"], "max_num_seqs = 0"),
    ],
)
def test_what_is_wrong_is_named_before_a_server_is_started(tune, words, told):
    status, said = tune(*words)

    assert status == 1
    assert told in said
