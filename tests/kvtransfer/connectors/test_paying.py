"""What pays to be loaded: what comes sooner than it would be computed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.connectors.paying import AGAIN_S, Paying

SIZE = 10  # tokens of a block


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def paying(clock):
    """Computing takes 0.01 s a block, the host 0.001, the disk 0.02 for blocks up to there."""
    paying = Paying(clock)
    paying.note_step(100, 0.1, waiting=0)
    paying.note_load(["host"] * 10, 0.01)
    paying.note_load(["disk"] * 10, 0.2)
    return paying


def test_everything_is_loaded_until_something_is_known(clock):
    assert Paying(clock).choose(["host", "disk"], SIZE) == 2


def test_tier_that_was_never_tried_is_tried(clock):
    paying = Paying(clock)
    paying.note_step(100, 0.1, waiting=0)

    assert paying.choose(["disk"] * 3, SIZE) == 3


def test_what_is_slower_than_computing_is_computed(paying):
    assert paying.choose(["disk"] * 5, SIZE) == 0


def test_what_is_quicker_is_loaded_up_to_where_a_slower_tier_begins(paying):
    assert paying.choose(["host"] * 3 + ["disk"] * 2, SIZE) == 3


def test_those_who_wait_make_computing_dearer(paying):
    paying.note_step(100, 0.1, waiting=2)

    assert paying.choose(["disk"] * 5, SIZE) == 5


def test_tier_that_became_quicker_is_used_again(paying, clock):
    clock.now += AGAIN_S
    assert paying.choose(["disk"] * 5, SIZE) == 5

    for _ in range(40):
        paying.note_load(["disk"] * 10, 0.01)

    assert paying.choose(["disk"] * 5, SIZE) == 5


def test_tier_that_is_still_slow_is_not_tried_again_at_once(paying, clock):
    clock.now += AGAIN_S
    paying.note_load(["disk"] * 10, 0.2)

    assert paying.choose(["disk"] * 5, SIZE) == 0


def test_load_counts_for_the_slowest_tier_in_it(clock):
    paying = Paying(clock)
    paying.note_step(100, 0.1, waiting=0)
    paying.note_load(["host", "disk"], 0.2)

    assert paying.choose(["host"] * 2, SIZE) == 2
    assert paying.choose(["disk"] * 2, SIZE) == 0


@given(st.lists(st.sampled_from(["host", "disk", "peer"])), st.floats(1e-6, 1.0))
def test_never_more_is_chosen_than_there_is_and_all_of_it_where_loading_is_free(tiers, step_s):
    paying = Paying(Clock())
    paying.note_step(100, step_s, waiting=0)

    assert paying.choose(tiers, SIZE) == len(tiers)
