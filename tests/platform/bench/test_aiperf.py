"""What aiperf writes becomes records whose times mean the same."""

import json
import stat
import sys

import pytest

from stafette.platform.bench.aiperf import read
from stafette.platform.bench.errors import BenchError
from stafette.platform.bench.measured import read_measured
from stafette.platform.cli import main

SECOND_NS = 1_000_000_000


def line(start_s=5.0, error=None, phase="profiling", **metrics):
    about = {
        "benchmark_phase": phase,
        "conversation_id": "session_1",
        "turn_index": 0,
        "request_start_ns": int(start_s * SECOND_NS),
        "request_end_ns": int((start_s + 1) * SECOND_NS),
    }
    told = {"metadata": about, "metrics": {k: {"value": v} for k, v in metrics.items()}}
    return told | ({"error": error} if error else {})


GOOD = line(
    time_to_first_token=500.0,
    inter_chunk_latency=[100.0, 300.0],
    request_latency=900.0,
    inter_token_latency=200.0,
    output_sequence_length=3,
    input_sequence_length=60,
    usage_prompt_tokens=70,
    usage_prompt_cache_read_tokens=35,
)


def written(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile_export.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_its_records_say_what_it_says_itself(tmp_path):
    (record,) = read(written(tmp_path, GOOD), streamed=True)

    assert record.ttft_s == pytest.approx(0.5)
    assert record.itl_s == pytest.approx([0.1, 0.3])
    assert record.e2e_s == pytest.approx(0.9)
    assert record.tpot_s == pytest.approx(0.2)  # its inter_token_latency
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (70, 35, 3)


def test_times_count_from_its_first_request(tmp_path):
    records = list(read(written(tmp_path, GOOD, line(start_s=7.5)), streamed=True))

    assert [record.began_s for record in records] == [0.0, 2.5]


def test_requests_that_warm_it_up_are_no_records(tmp_path):
    first = line(start_s=1.0, phase="warmup", request_latency=5_000.0)

    (record,) = read(written(tmp_path, first, GOOD), streamed=True)

    assert (record.began_s, record.e2e_s) == (0.0, pytest.approx(0.9))


def test_its_errors_stay_errors(tmp_path):
    bad = line(error={"code": 404, "type": "Not Found", "message": "..."})

    (record,) = read(written(tmp_path, bad), streamed=True)

    assert record.error == "HTTP 404: Not Found"


def test_answers_that_do_not_stream_have_an_end_only(tmp_path):
    whole = line(request_latency=900.0, output_sequence_length=3)

    (record,) = read(written(tmp_path, whole), streamed=False)

    assert (record.ttft_s, record.e2e_s) == (None, 0.9)


def test_records_that_it_did_not_write_are_an_error(tmp_path):
    with pytest.raises(BenchError, match=r"profile_export\.jsonl"):
        list(read(tmp_path, streamed=True))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Put a stand-in on PATH that writes what aiperf would, or fails."""

    def install(script):
        command = tmp_path / "bin" / "aiperf"
        command.parent.mkdir()
        command.write_text(f"#!{sys.executable}\n{script}")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")

    return install


WRITES = f"""
import json, os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--output-artifact-dir") + 1])
out.mkdir(parents=True)
(out / "profile_export.jsonl").write_text({json.dumps(json.dumps(GOOD))})
(out / "environment.json").write_text(json.dumps(dict(os.environ)))
"""


def run(server, tmp_path, *more):
    words = ["bench", "run", "--name", "x", "--endpoint", f"mine=127.0.0.1:{server.port}"]
    words += ["--output-dir", str(tmp_path), "--concurrencies", "2", "--no-report", "--osl", "4"]
    return main([*words, "--warmup", "0", "--isl", "16", "--std", "2", *more])


def test_it_measures_where_it_is_installed_and_its_command_is_kept(installed, server, tmp_path):
    installed(WRITES)

    status = run(server, tmp_path, "--tokenizer", "some/model", "--key", "sk-secret")

    (found,) = read_measured(tmp_path / "x")
    command = (tmp_path / "x/mine/c2/command.txt").read_text()
    assert status == 0
    assert found.backend == "aiperf"
    assert found.summary.ttft_ms["p50"] == pytest.approx(500)
    assert "--concurrency 2" in command
    assert "--warmup-request-count 2" in command
    assert "--use-server-token-count --streaming -m tiny" in command
    assert "secret" not in command + (tmp_path / "x/runs.jsonl").read_text()


@pytest.mark.parametrize(
    ("flag", "name", "told"),
    [
        ("--ca-file", "SSL_CERT_FILE", "{ca}"),
        ("--insecure", "AIPERF_HTTP_SSL_VERIFY", "false"),
        (None, "SSL_CERT_FILE", None),
        (None, "AIPERF_HTTP_SSL_VERIFY", None),
    ],
)
def test_it_believes_the_certificates_that_are_believed_here(
    installed, server, certificate, tmp_path, monkeypatch, flag, name, told
):
    monkeypatch.delenv(name, raising=False)
    installed(WRITES)
    flags = {"--ca-file": ["--ca-file", certificate[1]], "--insecure": ["--insecure"]}.get(flag, [])

    assert run(server, tmp_path, "--tokenizer", "some/model", *flags) == 0

    environment = json.loads((tmp_path / "x/mine/c2/aiperf/environment.json").read_text())
    assert environment.get(name) == (told and told.format(ca=certificate[1]))


def test_without_a_tokenizer_the_own_client_measures(installed, server, tmp_path, capsys):
    installed(WRITES)

    assert run(server, tmp_path) == 0
    assert "needs --tokenizer" in capsys.readouterr().out
    assert read_measured(tmp_path / "x")[0].backend == "builtin"


def test_its_failure_is_told_with_the_end_of_what_it_said(installed, server, tmp_path, capsys):
    installed("import sys; sys.exit('no such tokenizer')")

    assert run(server, tmp_path, "--tokenizer", "t", "--backend", "aiperf") == 1
    assert "no such tokenizer" in capsys.readouterr().err


def test_it_is_asked_for_only_where_it_is(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert run(server, tmp_path, "--tokenizer", "t", "--backend", "aiperf") == 1
    assert "is not installed" in capsys.readouterr().err
