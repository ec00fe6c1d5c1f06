"""Rounds alternate; medians and ratios know when there is nothing to compare."""

from benchmarks.common.rounds import alternate, middle, ratio, turns


def test_every_name_runs_once_a_round_and_each_begins_in_turn():
    assert list(turns(["a", "b", "c"], 2)) == [
        (0, "a"),
        (0, "b"),
        (0, "c"),
        (1, "b"),
        (1, "c"),
        (1, "a"),
    ]


def test_nobody_to_run_means_no_turns():
    assert list(turns([], 3)) == []


def test_a_failed_run_leaves_no_value():
    found = alternate(["a", "b"], 2, lambda name, number: number + 1.0 if name == "a" else None)

    assert found == {"a": [1.0, 2.0], "b": []}


def test_the_median_of_nothing_is_unknown():
    assert middle([]) is None
    assert middle([1.0, 9.0, 2.0]) == 2.0


def test_a_ratio_to_something_unknown_is_unknown():
    assert ratio(6.0, 3.0) == 2.0
    assert ratio(None, 3.0) is None
    assert ratio(6.0, None) is None
    assert ratio(6.0, 0.0) is None
