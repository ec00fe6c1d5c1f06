"""The control plane's benchmark runs to its end and tells what it promises."""

from benchmarks.kvtransfer.control import BARE_TCP, TCP, UNIX, Size, measure


def test_every_way_is_measured_and_has_its_goal():
    report = measure(Size(rounds=1, calls=20)).to_dict()

    rows = report["tables"]["One caller, µs"]
    assert [row["way"] for row in rows] == [UNIX, TCP, BARE_TCP]
    assert all(0 < row["p50"] <= row["p99"] for row in rows)
    assert [goal["name"] for goal in report["goals"]] == ["Unix, p50 µs", "TCP, p50 µs"]
    assert all(value > 0 for value in report["figures"].values())
