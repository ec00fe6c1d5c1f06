"""The replays of the tiers' benchmark: what they count, and that the store agrees with them."""

import argparse

import pytest

from benchmarks.common.report import Report
from benchmarks.kvtransfer import tiers, tiers_speed
from benchmarks.kvtransfer.tiers_live import replay_store
from benchmarks.kvtransfer.tiers_replay import Setting, replay_tiers
from benchmarks.kvtransfer.trace_replay import replay_without_end, synthetic_trace

KEYS = [b"%016d" % number for number in range(40)]


def test_blocks_are_found_where_they_are():
    prompts = [[KEYS[0], KEYS[1]], [KEYS[2], KEYS[3]], [KEYS[0], KEYS[1]], [KEYS[0], KEYS[1]]]

    found = replay_tiers(prompts, Setting(2, 4, "always", "lru", "lru"))

    assert (found.host_hits, found.disk_hits, found.writes, found.blocks) == (2, 2, 4, 8)
    assert (found.percent, found.host_percent, found.written_percent) == (50, 25, 50)


def test_disk_that_holds_everything_finds_all_that_can_be_found():
    trace = synthetic_trace(400)

    found = replay_tiers(trace, Setting(100, 20_000, "always"))

    assert found.percent == replay_without_end(trace).percent


@pytest.mark.parametrize("admission", ["always", "frequency"])
def test_store_finds_what_the_books_say(tmp_path, admission):
    trace, setting = synthetic_trace(150), Setting(400, 800, admission)

    books, found = replay_tiers(trace, setting), replay_store(trace, setting, tmp_path)

    assert found.blocks == books.blocks
    assert found.percent == pytest.approx(books.percent, rel=0.15)


def test_trace_is_made_up_where_there_is_none_and_the_report_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(tiers, "TRACE", tmp_path / "trace.jsonl")
    monkeypatch.setattr(tiers, "QUICK_PROMPTS", 10)
    report = Report("test")

    trace = tiers.chosen_trace(argparse.Namespace(quick=True, trace=None), report)

    assert len(trace) == 10
    assert "made up" in report.notes[0]


def test_speeds_are_measured_and_what_comes_back_is_compared(tmp_path):
    bench = tiers_speed.Bench(tmp_path / "speed", 1 << 16, 64)

    bench.round()
    bench.round()

    assert all(len(speeds) == 2 and min(speeds) > 0 for speeds in bench.speeds.values())


def test_index_is_read_whole(tmp_path):
    assert tiers_speed.rebuild_s(tmp_path / "index", 2_000) > 0
