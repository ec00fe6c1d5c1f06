"""Ratios and goals follow from what each system showed; who is missing is said to be."""

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks.common.report import Report
from benchmarks.kvtransfer import vs_peers
from benchmarks.kvtransfer.peers import lineup
from benchmarks.kvtransfer.peers.contest import Contest
from benchmarks.kvtransfer.peers.lineup import IPERF, MEMCPY, NIXL_CMA, NIXL_TCP, SHM, TCP, Entry
from benchmarks.kvtransfer.peers.protocol import Run

CASES = {name: Run(*size, seed=0, seconds=1.0) for name, size in vs_peers.SIZES.items()}
CHILD = """
import json, sys
for line in sys.stdin:
    if json.loads(line)["num_blocks"] > int(sys.argv[1]): sys.exit("out of memory")
    answer = {"p50_s": 1e-3, "best_s": 5e-4, "iterations": 7, "cpu_s_per_gb": 2.0, "note": "noted"}
    print(json.dumps(answer), flush=True)
"""


def contest_of(speeds: dict[str, float], tmp_path: Path) -> Contest:
    """Return a contest in which each system had that many GB/s in every case."""
    contest = Contest([Entry(name) for name in speeds], tmp_path)
    for name, speed in speeds.items():
        for case in CASES.values():
            p50_s = case.nbytes / speed / 1e9
            run = {"p50_s": p50_s, "best_s": p50_s, "iterations": 1, "cpu_s_per_gb": 1.0}
            contest.standings[name].runs[case] = [run | {"note": ""}]
    return contest


def judged(contest: Contest) -> dict[str, bool | None]:
    report = Report("test")
    vs_peers.goals(report, contest, CASES)
    return {goal.name: goal.met for goal in report.goals}


def test_goals_compare_with_the_peer_or_limit_that_each_is_about(tmp_path):
    speeds = {SHM: 7.5, MEMCPY: 10.0, TCP: 3.5, NIXL_TCP: 1.0, IPERF: 4.0}

    assert judged(contest_of(speeds, tmp_path)) == {
        "stafette shm / memcpy, 4096 × 4 KiB": True,
        "stafette shm / memcpy, 256 × 64 KiB": False,
        "stafette shm / memcpy, 1 × 256 MiB": False,
        "stafette tcp / nixl tcp, 4096 × 4 KiB": False,
        "stafette tcp / nixl tcp, 256 × 64 KiB": True,
        "stafette tcp / nixl tcp, 1 × 256 MiB": True,
        "stafette tcp / iperf3, 256 × 64 KiB": True,
        "stafette tcp / iperf3, 1 × 256 MiB": True,
        "stafette shm, 1 × 4 KiB, µs": True,
        "stafette tcp, 1 × 4 KiB, µs": True,
    }


def test_a_slow_start_misses_the_goals_of_latency(tmp_path):
    found = judged(contest_of({SHM: 4096 / 31e-6 / 1e9, TCP: 4096 / 101e-6 / 1e9}, tmp_path))

    assert found["stafette shm, 1 × 4 KiB, µs"] is False
    assert found["stafette tcp, 1 × 4 KiB, µs"] is False


def test_who_is_missing_has_an_empty_column_and_goals_that_are_not_measured(tmp_path):
    contest = contest_of({MEMCPY: 10.0, NIXL_CMA: 2.0}, tmp_path)
    contest.standings[NIXL_CMA].runs.clear()
    report = Report("test")

    vs_peers.tables(report, contest, CASES)

    assert set(judged(contest).values()) == {None}
    assert report.tables[0].headers == ["case", MEMCPY, NIXL_CMA]
    assert report.tables[0].rows[0] == ["4096 × 4 KiB", pytest.approx(10.0), None]
    assert report.tables[2].rows == [[pytest.approx(4096 / 10e9 * 1e6), None]]


def test_a_system_that_dies_is_out_with_its_last_words_and_the_others_go_on(tmp_path):
    sizes = {"steady": "9", "fragile": "4"}
    entries = [Entry(name, [sys.executable, "-c", CHILD, most]) for name, most in sizes.items()]
    contest = Contest([*entries, Entry("absent", missing="no such package")], tmp_path)
    small, large = Run(1, 10**6, 0, 1.0), Run(8, 10**6, 0, 1.0)
    try:
        contest.start()
        contest.play({"small": small, "large": large}, rounds=2)
    finally:
        contest.close()

    steady, fragile, absent = contest.standings.values()
    assert len(steady.runs[large]) == 2
    assert steady.gb_per_s(large) == pytest.approx(8.0)
    assert steady.notes() == {"noted"}
    assert fragile.gb_per_s(small) == pytest.approx(1.0)
    assert fragile.gb_per_s(large) is None
    assert "fragile failed at large, round 1" in fragile.lost
    assert "out of memory" in fragile.lost
    assert absent.lost == "no such package"


def test_quick_installs_nothing_and_says_what_is_missing(tmp_path):
    entries = {entry.name: entry for entry in lineup.entries([MEMCPY, NIXL_TCP], tmp_path, False)}

    assert not entries[MEMCPY].missing
    assert "nixl-cu12==1.5.1 numpy msgpack xxhash is not installed" in entries[NIXL_TCP].missing
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_system_lists_the_known_ones(tmp_path):
    with pytest.raises(SystemExit, match=r"'nccl' is none of memcpy, iperf3, nixl cma"):
        lineup.entries(["nccl"], tmp_path, False)


def test_an_unknown_case_lists_the_known_ones():
    arguments = argparse.Namespace(cases="1 × 4 KiB, 2 × 4 KiB", quick=False)

    with pytest.raises(SystemExit, match="'2 × 4 KiB' is none of 4096 × 4 KiB"):
        vs_peers.chosen_cases(arguments)
