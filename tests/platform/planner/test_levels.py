"""What was needed once at a level is needed there again, until the level has clearly fallen."""

import pytest
from tests.platform.planner.moments import Moments, planner

from stafette.platform.planner.levels import REMEMBERED_S, Levels

PACE_S = 5.0


def seen(*stretches):
    """Return levels that saw (seconds, need, load) one after the other."""
    levels, at = Levels(), 0.0
    for seconds, need, load in stretches:
        for _ in range(round(seconds / PACE_S)):
            levels.note(at, need, load)
            at += PACE_S
    return levels


def test_same_load_needs_again_what_it_needed_for_a_moment():
    levels = seen((600, 3, 2.0), (30, 4, 2.0), (600, 3, 2.0))

    assert levels.needed(3, work_s=1.0, dispersion=1.0) == 4


def test_load_that_has_clearly_fallen_needs_less():
    levels = seen((600, 4, 3.0), (120, 2, 1.0))

    assert levels.needed(2, work_s=1.0, dispersion=1.0) == 2


def test_fall_that_chance_explains_is_none():
    """Of large requests few come, and few tell little."""
    levels = seen((600, 4, 3.0), (120, 2, 2.6))

    assert levels.needed(2, work_s=0.01, dispersion=1.0) == 2
    assert levels.needed(2, work_s=1.0, dispersion=1.0) == 4
    assert levels.needed(2, work_s=0.01, dispersion=100.0) == 4


def test_load_that_fell_part_of_the_way_needs_what_it_needed_there():
    levels = seen((600, 2, 1.0), (600, 3, 1.0), (600, 6, 5.0), (300, 2, 1.0))

    assert levels.needed(2, work_s=0.1, dispersion=1.0) == 3


def test_short_burst_says_nothing_of_the_level_beside_it():
    levels = seen((600, 3, 1.0), (60, 8, 6.0), (120, 3, 1.0))

    assert levels.needed(3, work_s=0.3, dispersion=1.0) == 3


def test_after_an_hour_it_is_forgotten():
    levels = seen((30, 4, 2.0), (REMEMBERED_S + PACE_S, 3, 2.0))

    assert levels.needed(3, work_s=1.0, dispersion=1.0) == 3


def test_nothing_is_needed_where_nothing_was_seen_to_be():
    assert seen((60, 2, 1.0)).needed(2, work_s=1.0, dispersion=1.0) == 2
    assert seen((60, 2, 0.0), (60, 1, 0.0)).needed(1, work_s=0.0, dispersion=1.0) == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_constant_load_between_two_sizes_changes_them_no_more_than_twice_an_hour(seed):
    """One and a half requests a second are just too many for one worker that does both."""
    fleet = Moments(planner(interval_s=PACE_S), pace_s=PACE_S, startup_s=60.0, seed=seed)
    fleet.go_on(600, 1.5)
    known = fleet.at

    fleet.go_on(3_600, 1.5)

    assert len([at for at in fleet.changes if at > known]) <= 2


def test_load_that_falls_is_followed_all_the_same():
    fleet = Moments(planner(interval_s=PACE_S), pace_s=PACE_S, startup_s=60.0)
    fleet.go_on(900, 11.0)
    most = sum(fleet.targets.values())

    fleet.go_on(600, 1.5)

    assert sum(fleet.targets.values()) <= most - 2


def test_other_requests_at_the_same_rate_are_another_level():
    fleet = Moments(planner(interval_s=PACE_S), pace_s=PACE_S, startup_s=60.0)
    fleet.go_on(900, 6.0, prompt=4_000, output=200)
    most = sum(fleet.targets.values())

    fleet.go_on(900, 6.0, prompt=1_000, output=20)

    assert sum(fleet.targets.values()) <= most - 2
