"""With which of a peer's points ours is compared."""

import pytest

from benchmarks.planner.compare import Study
from benchmarks.planner.measuring import DYNAMO, OURS, Figures


def study(**points):
    """Return one of a single scenario: share kept and GPU-hours by policy."""
    made = Study([], 1, [p for p in points if p not in ("ours", "default")])
    names = {"ours": OURS, "default": DYNAMO}
    made.figures = [
        Figures("s", names.get(name, name), 1, 100, kept, hours, 0, 0, None, None, 1.0)
        for name, (kept, hours) in points.items()
    ]
    return made


def test_cheapest_point_that_keeps_as_much_is_the_one_compared_with():
    made = study(ours=(0.97, 2.0), default=(0.5, 1.0), tight=(0.98, 3.0), more=(0.97, 2.5))

    assert made.as_good("s") == "more"


def test_nobody_is_asked_for_more_than_was_promised():
    made = study(ours=(1.0, 2.0), default=(0.5, 1.0), tight=(0.991, 2.5), more=(1.0, 3.0))

    assert made.as_good("s") == "tight"


def test_defaults_that_keep_enough_are_a_point_as_well():
    made = study(ours=(0.99, 2.0), default=(0.995, 1.0), more=(1.0, 3.0))

    assert made.as_good("s") == DYNAMO


def test_where_no_point_keeps_enough_the_one_that_keeps_most_counts():
    made = study(
        ours=(0.99, 2.0), default=(0.5, 1.0), dear=(0.8, 2.5), tight=(0.8, 2.0), more=(0.7, 3.0)
    )

    assert made.as_good("s") == "tight"


def test_share_is_of_the_point_that_is_as_good():
    made = study(ours=(0.99, 2.0), default=(0.5, 1.0), more=(1.0, 4.0))

    assert made.share("s") == pytest.approx(0.5)


def test_the_median_of_seeds_is_what_counts():
    made = study(ours=(0.99, 2.0), default=(0.5, 1.0))
    for seed, kept in ((2, 0.9), (3, 0.7)):
        made.figures.append(Figures("s", DYNAMO, seed, 1, kept, 1.0, 0, 0, None, None, 1.0))

    assert made.kept("s", DYNAMO) == pytest.approx(0.7)
