"""`stafette simulate`, as a user runs it."""

import json

import pytest

from stafette.platform import cli

DESCRIPTION = """
workload:
  duration_s: 5
  poisson: {requests_s: 4}
  lengths: {prompt_tokens: 300, output_tokens: 20}
pools:
  workers: {replicas: 2}
"""


@pytest.fixture
def described(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(DESCRIPTION)
    return path


def test_a_simulation_is_summed_up_and_written_down(described, tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("json", "html", "plans")}
    flags = [part for name, path in files.items() for part in (f"--{name}", str(path))]

    status = cli.main(["simulate", str(described), *flags, "--set", "planner.mode=dry_run"])

    out = capsys.readouterr().out
    assert status == 0
    assert "promises kept" in out
    told = json.loads(files["json"].read_text())
    assert told["served"] == told["requests"] > 5
    assert "<svg" in files["html"].read_text()
    assert len(files["plans"].read_text().splitlines()) >= 5


def test_a_trace_can_be_given_in_place_of_the_files(tmp_path, capsys):
    description, trace = tmp_path / "t.yaml", tmp_path / "t.jsonl"
    description.write_text("workload: {trace: {file: none}}\npools: {workers: {}}\n")
    request = {"timestamp": 0, "input_length": 700, "output_length": 3, "hash_ids": [1, 2]}
    trace.write_text(json.dumps(request) + "\n")

    status = cli.main(["simulate", str(description), "--trace", str(trace)])

    assert status == 0
    assert "1, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--set", "pools.workers.replica=1"], "does not exist; did you mean replicas?"),
        (["--json", "/nowhere/x.json"], "output = '/nowhere/x.json': cannot be written"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(described, capsys, flags, told):
    status = cli.main(["simulate", str(described), *flags])

    assert status == 1
    assert told in capsys.readouterr().err
