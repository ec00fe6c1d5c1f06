"""Routes: the quickest for a size is taken, measured, and rests after failures, never for good."""

import pytest

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.routes import BreakerConfig, Route, quickest

BREAKER = BreakerConfig(failures=2, cool_down_s=1.0, max_cool_down_s=4.0)
MIB = 1 << 20


def route(name="tcp", setup_us=100.0, gb_per_s=1.0) -> Route:
    return Route(name, setup_us, gb_per_s, BREAKER)


def test_small_and_large_transfers_may_take_different_routes():
    prompt, wide = route("prompt", 10, 1), route("wide", 1000, 10)

    assert quickest([prompt, wide], 4096, 0.0) is prompt
    assert quickest([prompt, wide], 64 * MIB, 0.0) is wide


def test_equal_routes_are_chosen_by_name():
    assert quickest([route("b"), route("a")], MIB, 0.0).transport == "a"


def test_measurements_move_the_expectation():
    slow, other = route("a", 100, 10), route("b", 100, 1)

    for _ in range(30):
        slow.succeeded(100 * MIB, 1.0)  # a tenth of what b promises

    assert quickest([slow, other], 100 * MIB, 0.0) is other
    assert slow.view(0.0).gb_per_s == pytest.approx(0.105, abs=0.02)
    assert slow.view(0.0).measured == 30


def test_route_rests_after_failures_in_a_row_and_comes_back():
    it = route()

    it.failed(now=10.0)
    assert quickest([it], MIB, 10.0) is it
    it.failed(now=10.0)

    assert quickest([it], MIB, 10.5) is None
    assert it.view(10.5).rests_s == 0.5
    assert quickest([it], MIB, 11.0) is it


def test_rest_doubles_up_to_its_limit_and_success_ends_it():
    it = route()
    rests = []
    for _ in range(6):
        it.failed(now=0.0)
        rests.append(it.rests_s(0.0))

    assert rests == [0.0, 1.0, 2.0, 4.0, 4.0, 4.0]
    it.succeeded(MIB, 0.1)
    assert quickest([it], MIB, 0.0) is it
    assert it.view(0.0).failures == 0


@pytest.mark.parametrize("options", [{"failures": 0}, {"cool_down_s": 0}, {"cool_down_s": 40.0}])
def test_breaker_refuses_values_that_make_no_sense(options):
    with pytest.raises(InvalidValue, match=f"breaker.{next(iter(options))}"):
        BreakerConfig(**options)
