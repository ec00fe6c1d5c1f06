"""A small point of the growth curve has in its index what it says."""

from benchmarks.common.report import Report
from benchmarks.router.scale import goals
from benchmarks.router.scale_point import COMMON, OWN, Point


def test_a_point_holds_its_blocks_before_and_after_it_is_churned():
    point = Point(workers=5, blocks=20 * OWN)

    told = point.fill()
    assert told["entries"] == 20 * OWN + 5 * COMMON
    assert sum(point.router.index.held(name) for name in point.workers) == told["entries"]
    point.churn(200)

    held = [point.router.index.held(name) for name in point.workers]
    assert held == [4 * OWN + COMMON] * 5


def test_placements_find_who_holds_a_prompt_and_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr("benchmarks.router.scale_point._SETTLED", 10)
    point = Point(workers=3, blocks=9 * OWN)
    point.fill()

    told = point.place(50)

    assert 0 < told["place_p50_us"] <= told["place_p99_us"]
    assert len(point.router.sharing.own) <= 3 * 4 + 1


def test_a_share_of_the_workers_computes_prompts_for_the_others(monkeypatch):
    monkeypatch.setattr("benchmarks.router.scale_point._SETTLED", 10)
    point = Point(workers=16, blocks=16 * OWN, prefill_share=0.25)

    point.fill()
    point.place(60)

    roles = [member.spec.role for member in point.router.fleet.members.values()]
    assert roles == ["decode", "decode", "decode", "prefill"] * 4
    assert {option.prefill for option in point.router.explain(1)[0].options} >= {"w3", "w7"}


def test_goals_are_about_the_largest_point():
    names = ("index_mib", "block_bytes", "fill_blocks_s", "churn_events_s")
    small = dict.fromkeys((*names, "place_p50_us", "place_p99_us"), 100.0)
    found = {(w, b): dict(small) for w in (10, 20) for b in (1_000_000, 2_000_000)}
    found[20, 2_000_000] |= {"block_bytes": 50.0, "place_p50_us": 300.0}
    report = Report("growth")

    goals(found, report)

    met = {goal.name.split(": ")[1]: goal.met for goal in report.goals}
    assert met["bytes a block"]
    assert not met["placement p50, of that with the fewest blocks"]
    assert met["one-block events, of the smallest point's rate"]
