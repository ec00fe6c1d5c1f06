"""A whole benchmark against servers that live, die, refuse and change."""

import json
import re
from pathlib import Path

import pytest
from tests.platform.bench.played import tokens

from stafette.platform.bench.measured import read_broken, read_measured
from stafette.platform.bench.results import Results, read_records
from stafette.platform.cli import main
from stafette.platform.commands.bench_shapes import DEFAULT_CONCURRENCIES, read_concurrencies

LOAD = ["--isl", "16", "--std", "2", "--osl", "4", "--warmup", "1"]


@pytest.fixture
def bench(tmp_path, capsys, monkeypatch):
    """Run `stafette bench run`; return its status and all that it said."""
    monkeypatch.delenv("CONCURRENCIES", raising=False)

    def run(server, *more, name="x", levels=("1", "3"), report=False):
        url = server if isinstance(server, str) else f"mine=127.0.0.1:{server.port}"
        words = ["bench", "run", "--name", name, "--endpoint", url, *LOAD]
        words += ["--output-dir", str(tmp_path), *more]
        if levels:
            words += ["--concurrencies", *levels]
        status = main(words if report else [*words, "--no-report"])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_each_level_is_measured_in_order_and_kept_with_its_records(bench, server, tmp_path):
    status, said = bench(server, "--goodput", "e2e:60000", "--price", "2")

    first, second = read_measured(tmp_path / "x")
    assert status == 0
    assert [first.level, second.level] == ["c1", "c3"]
    assert (first.summary.requests, first.summary.output_tokens) == (10, 4)
    assert first.summary.input_tokens == pytest.approx(16, abs=4)
    assert first.summary.good_share == 1
    assert first.summary.kv_hit_rate == pytest.approx(0.5, abs=0.05)
    assert len(first.records()) == 10
    assert server.chats == 1 + 10 + 10
    assert re.search(r"mine\s+c1\s+10\s+0", said)
    (run,) = (tmp_path / "x/runs.jsonl").read_text().splitlines()
    assert {"command", "stafette", "python", "machine", "servers"} <= json.loads(run).keys()


def test_endpoints_take_turns_at_each_level(bench, serve, tmp_path, monkeypatch):
    order = []
    finish = Results.finish
    monkeypatch.setattr(
        Results, "finish", lambda *args: (order.append((args[1], args[2].name)), finish(*args))
    )

    bench(serve(), "--endpoint", f"other=127.0.0.1:{serve().port}")

    assert order == [("mine", "c1"), ("other", "c1"), ("mine", "c3"), ("other", "c3")]


def test_every_request_asks_what_was_wanted(bench, server):
    bench(server, levels=("1",))

    for body in server.bodies:
        assert body["model"] == "tiny"
        assert body["max_completion_tokens"] == 4
        assert body["ignore_eos"] is True
        assert body["stream_options"] == {"include_usage": True}
    prompts = {body["messages"][0]["content"] for body in server.bodies}
    assert len(prompts) == len(server.bodies)


def test_what_is_finished_is_not_measured_again(bench, server):
    bench(server)
    asked = server.chats

    status, said = bench(server)

    assert status == 0
    assert server.chats == asked
    assert "2 of 2 levels are finished already" in said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--osl", "5"], "lengths.osl was 4, and is 5"),
        (["--seed", "7"], "seed was"),
        (["--api", "completions"], "api was chat"),
    ],
)
def test_another_plan_under_the_same_name_is_refused_with_the_difference(
    bench, server, change, told
):
    bench(server, levels=("1",))

    status, said = bench(server, *change, levels=("1",))

    assert status == 1
    assert told in said


def test_a_label_keeps_its_url_and_another_may_join(bench, serve):
    one, two = serve(), serve()
    bench(one, levels=("1",))

    status, said = bench(f"mine=127.0.0.1:{two.port}", levels=("1",))
    joined, table = bench(f"other=127.0.0.1:{two.port}", levels=("1",))

    assert status == 1
    assert f"127.0.0.1:{one.port}" in said
    assert joined == 0
    assert "(100% of the best)" in table


def test_a_server_that_dies_leaves_what_was_measured_and_the_rest_follows(bench, serve, tmp_path):
    server = serve(dies_after=1 + 10 + 4)

    status, said = bench(server)

    assert status == 1
    assert "stopped answering" in said
    assert "run the same command again" in said
    assert [each.level for each in read_measured(tmp_path / "x")] == ["c1"]
    (broken,) = read_broken(tmp_path / "x")
    assert broken.level == "c3"
    records = read_records(tmp_path / "x/mine/c3/records.jsonl")
    assert sum(record.ok for record in records) >= 2
    partial = json.loads((tmp_path / "x/mine/c3/broken.json").read_text())["partial"]
    assert partial["requests"] == sum(record.ok for record in records)

    again = serve(port=server.port)
    status, said = bench(again)

    assert status == 0
    assert "1 of 2 levels are finished already" in said
    assert [each.level for each in read_measured(tmp_path / "x")] == ["c1", "c3"]
    assert read_broken(tmp_path / "x") == []


def test_one_server_that_dies_does_not_keep_the_others_from_being_measured(bench, serve, tmp_path):
    dying, living = serve(dies_after=3), serve()

    more = ["--endpoint", f"second=127.0.0.1:{living.port}"]
    status, said = bench(dying, *more, levels=("3",))

    assert status == 1
    assert [each.label for each in read_measured(tmp_path / "x")] == ["second"]


def test_nobody_there_is_told_before_anything_is_measured(bench, serve):
    server = serve()
    server.stop()

    status, said = bench(server)

    assert status == 1
    assert "does not answer" in said
    assert "--endpoint mine" in said


def test_a_wrong_model_is_told_with_those_that_are_served(bench, serve):
    server = serve(models=("a", "b"))

    status, said = bench(server, "--model", "c")
    unnamed, said_of_none = bench(server)

    assert (status, unnamed) == (1, 1)
    assert "--model = 'c'" in said
    assert "a, b" in said
    assert "must be named" in said_of_none
    assert server.chats == 0


def test_a_server_that_refuses_everything_is_told_in_its_words(bench, serve):
    status, said = bench(serve(status=400))

    assert status == 1
    assert "HTTP 400: played" in said


def test_some_errors_are_counted_and_the_rest_is_measured(bench, serve, tmp_path):
    def play(body):
        return tokens(body) if server.chats % 2 else [b'data: {"error": "full"}\n\n']

    server = serve(play)

    status, said = bench(server, levels=("1",))

    assert status == 0
    assert "5 x stream: full" in said
    assert read_measured(tmp_path / "x")[0].summary.errors == {"stream: full": 5}


def test_prompts_that_are_too_long_for_the_model_are_refused(bench, server):
    status, said = bench(server, "--isl", "4096")

    assert status == 1
    assert "max_model_len = 4096" in said


def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(bench, server, tmp_path):
    level = tmp_path / "x/mine/c3"
    level.mkdir(parents=True)
    (level / "records.jsonl").symlink_to("/dev/full")

    status, said = bench(server)

    assert status == 1
    assert "No space left" in said
    assert "run the same command again" in said
    assert [each.level for each in read_measured(tmp_path / "x")] == ["c1"]

    (level / "records.jsonl").unlink()
    assert bench(server)[0] == 0


def test_a_folder_that_cannot_be_made_is_named(bench, server, tmp_path):
    (tmp_path / "x").write_text("a file")

    status, said = bench(server)

    assert status == 1
    assert str(tmp_path / "x") in said


def test_answers_that_do_not_stream_have_no_first_token(bench, serve, tmp_path):
    whole = {"choices": [{"message": {"content": "all"}}], "usage": {"completion_tokens": 4}}
    server = serve(lambda body: [json.dumps(whole).encode()])

    status, _ = bench(server, "--no-stream", levels=("2",))

    (found,) = read_measured(tmp_path / "x")
    assert status == 0
    assert (found.summary.ttft_ms, found.summary.tpot_ms) == (None, None)
    assert found.summary.e2e_ms["p50"] > 0


def test_a_session_sends_all_that_was_said(bench, server):
    bench(server, "--sessions", "1", "--turns", "3", "--requests", "3", "--warmup", "0", levels=())

    turns = [[each["role"] for each in body["messages"]] for body in server.bodies]
    assert turns == [["user"] + ["assistant", "user"] * number for number in range(3)]
    assert server.bodies[1]["messages"][1]["content"] == " tok" * 4


def test_completions_are_asked_with_a_text(bench, server):
    status, _ = bench(server, "--api", "completions", levels=("1",))

    assert status == 0
    assert all("messages" not in body and body["max_tokens"] == 4 for body in server.bodies)


def test_requests_of_a_rate_and_of_a_trace_are_all_asked(bench, server, tmp_path):
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:46.{number}00000,{20 + number},{number + 1}" for number in range(4)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")

    rate, _ = bench(server, "--rates", "500", "--requests", "12", levels=())
    replay, _ = bench(server, "--trace", str(trace), "--speedup", "10", name="y", levels=())

    (at_rate,) = read_measured(tmp_path / "x")
    (of_trace,) = read_measured(tmp_path / "y")
    assert (rate, replay) == (0, 0)
    assert (at_rate.level, at_rate.summary.requests) == ("r500", 12)
    assert (of_trace.level, of_trace.summary.requests) == ("x10", 4)
    asked = [(len(_words(body)), body["max_completion_tokens"]) for body in server.bodies[-4:]]
    assert asked == [(20, 1), (21, 2), (22, 3), (23, 4)]


def test_shared_beginnings_are_shared_words(bench, server):
    more = ["--prefix-ratios", "0.5", "--prefixes", "1", "--concurrency", "2", "--warmup", "0"]
    bench(server, *more, levels=())

    beginnings = {tuple(_words(body)[:8]) for body in server.bodies}
    assert len(beginnings) == 1
    assert len({tuple(_words(body)) for body in server.bodies}) == server.chats


def _words(body):
    return body["messages"][0]["content"].split()


@pytest.mark.parametrize(
    ("given", "levels"),
    [("2,4", ["c2", "c4"]), ("4 2 2", ["c2", "c4"]), ("two", None), ("0", None), ("", None)],
)
def test_levels_come_from_the_environment_or_are_the_defaults(given, levels, caplog):
    found = read_concurrencies(given)

    if levels:
        assert [f"c{each}" for each in found] == levels
    else:
        assert found == DEFAULT_CONCURRENCIES
        assert ("CONCURRENCIES" in caplog.text) == bool(given)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rates", "1", "--sessions", "2"], "--sessions = [2]"),
        (["--turns", "3"], "means nothing without --sessions"),
        (["--rates", "1", "--burstiness", "2"], "give --arrivals gamma"),
        (["--backend", "aiperf", "--prefix-ratios"], "--backend = 'aiperf'"),
        (["--goodput", "ttft:5", "--no-stream"], "--no-stream"),
        (["--requests", "0"], "--requests = 0"),
        (["--gpus", "0"], "--gpus = 0"),
        (["--price", "-1"], "--price = -1.0"),
        (["--timeout-s", "0"], "--timeout-s = 0.0"),
        (["--hardware", "H1000"], "H100"),
    ],
)
def test_what_contradicts_itself_is_named_before_anything_is_asked(bench, server, words, told):
    status, said = bench(server, *words, levels=())

    assert status == 1
    assert told in said
    assert server.paths == []


def test_the_page_and_the_charts_need_nothing_beside_them(bench, serve, tmp_path):
    status, said = bench(serve(gap_s=0.002), report=True)

    page = (tmp_path / "x/report.html").read_text()
    assert status == 0
    assert page.count("<svg") >= 6
    assert "Pareto front" in page
    assert not re.search(r"<script|<link|src=|href=", page)
    drawn = {path.stem for path in Path(tmp_path / "x/plots").glob("*.png")}
    assert {"ttft", "tpot", "e2e", "throughput", "pareto"} <= drawn


def test_two_labels_are_compared_with_intervals(bench, serve, tmp_path, capsys):
    slow = serve(gap_s=0.01)
    bench(serve(), "--endpoint", f"slow=127.0.0.1:{slow.port}", levels=("2",))
    a, b = (str(tmp_path / "x" / label) for label in ("mine", "slow"))

    status = main(["bench", "compare", a, b, "--html", str(tmp_path / "cmp.html")])

    said = capsys.readouterr().out
    assert status == 0
    assert re.search(r"c2\s+E2E mean, ms .*B is worse by", said)
    assert "B is worse" in (tmp_path / "cmp.html").read_text()


def test_a_folder_without_results_is_named(tmp_path, capsys):
    assert main(["bench", "report", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
