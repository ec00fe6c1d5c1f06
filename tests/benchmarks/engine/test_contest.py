"""Engines take turns; one that fails is out, and the others go on."""

import sys

import pytest

from benchmarks.engine.contenders.protocol import Case
from benchmarks.engine.contest import Contest, Entry, Standing

STEADY = "for line in sys.stdin: print(json.dumps({'seconds': 2.0, 'ttft_s': 0.5}), flush=True)"
FRAGILE = """
for line in sys.stdin:
    if json.loads(line)['sequences'] > 4: sys.exit('out of memory')
    print(json.dumps({'seconds': 1.0, 'ttft_s': None, 'start_s': 7.0}), flush=True)
"""


def entry(name: str, script: str) -> Entry:
    return Entry(name, [sys.executable, "-c", f"import json, sys\n{script}"])


@pytest.fixture
def contest(tmp_path):
    contest = Contest([entry("steady", STEADY), entry("fragile", FRAGILE)], tmp_path)
    yield contest
    contest.close()


def test_an_engine_that_dies_is_out_with_its_last_words(contest):
    contest.start(1)
    contest.play({"small": Case(1, 8, 2), "large": Case(8, 8, 2)}, rounds=2)

    steady, fragile = contest.standings["steady"], contest.standings["fragile"]
    assert steady.lost is None
    assert len(steady.runs["large"]) == 2
    assert steady.memory_bytes > 0
    assert len(fragile.runs["small"]) == 2
    assert "large" not in fragile.runs
    assert "fragile failed at large, round 1" in fragile.lost
    assert "out of memory" in fragile.lost
    assert contest.running == ["steady"]


def test_an_engine_that_runs_elsewhere_tells_its_own_start(contest):
    contest.start(2)

    assert contest.standings["fragile"].starts_s == [7.0, 7.0]
    assert 0 < contest.standings["steady"].start_s < 7


def test_a_standing_gives_medians_and_knows_nothing_of_what_was_not_run():
    runs = [{"seconds": s, "ttft_s": None} for s in (1.0, 9.0, 2.0)]
    standing = Standing(runs={"small": runs})

    assert standing.seconds("small") == 2.0
    assert standing.ttft_s("small") is None
    assert standing.seconds("large") is None
    assert standing.start_s is None
