"""What the formulas say beside what a simulation counts."""

import heapq

import numpy as np
import pytest

from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.queueing import (
    decoding,
    dispersion_of,
    erlang_c,
    late_share,
    percentile_ms,
    prefill_ms,
    waiting,
)
from stafette.platform.planner.shape import Shape
from stafette.router.performance import Performance


def simulated_ms(work_ms, rate, workers, count=20_000, seed=7):
    """Return the time in the system of requests that come at random and wait in one line."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1e3 / rate, count))
    works = rng.choice(work_ms, count)
    free, spent = [0.0] * workers, np.empty(count)
    for number, (at, work) in enumerate(zip(arrivals, works, strict=True)):
        begun = max(at, heapq.heappop(free))
        heapq.heappush(free, begun + work)
        spent[number] = begun + work - at
    return spent


def lengths(spread, count=400):
    work = np.random.default_rng(2).lognormal(0.0, spread, count)
    return 300.0 * work / work.mean()


def test_erlang_c_is_that_of_the_tables():
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10, 8.0) == pytest.approx(0.409, abs=1e-3)
    assert erlang_c(3, 3.5) == 1.0


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("busy", [0.5, 0.8])
@pytest.mark.parametrize("spread", [0.2, 0.6])
def test_percentile_is_that_of_the_simulation(workers, busy, spread):
    work = lengths(spread)
    rate = busy * workers / 0.3

    expected = percentile_ms(waiting(work, rate, 1.0, workers), work, 95)

    counted = float(np.percentile(simulated_ms(work, rate, workers), 95))
    assert expected == pytest.approx(counted, rel=0.2)


def test_share_of_late_ones_is_that_of_the_simulation():
    work = lengths(0.5)

    expected = late_share(waiting(work, 8.0, 1.0, 3), work, 1_000.0)

    counted = float((simulated_ms(work, 8.0, 3) > 1_000.0).mean())
    assert expected == pytest.approx(counted, abs=0.03)


def test_what_comes_in_faster_than_it_goes_out_is_late_for_ever():
    work = np.full(10, 300.0)

    wait = waiting(work, 10.0, 1.0, 3)

    assert percentile_ms(wait, work, 95) == np.inf
    assert late_share(wait, work, 1e9) == 1.0


def shared_worker(model, shape, rate, seconds=1_500.0, seed=9):
    """Return how many answers a worker had under way, at each of its steps."""
    rng, p = np.random.default_rng(seed), model.performance
    at, running, seen = 0.0, [], []
    following = rng.exponential(1 / rate)
    while at < seconds:
        while following <= at:
            running.append(int(shape.output_tokens[0]))
            following += rng.exponential(1 / rate)
        if not running:
            at = following
            continue
        context = len(running) * shape.mean_context
        at += p.decode_step_ms(len(running), int(context)) / 1e3
        running = [left - 1 for left in running if left > 1]
        seen.append(len(running))
    return np.array(seen)


def test_number_that_decodes_wanders_as_in_the_simulation():
    model = EngineModel(performance=Performance(step_ms=20, decode_ms_per_seq=1.0))
    shape = Shape.of(prompt=1_000, output=100)

    found = decoding(model, shape, 5.0, 1.0, 1, 95)

    counted = shared_worker(model, shape, 5.0)
    assert found.sequences == pytest.approx(counted.mean(), rel=0.15)
    assert found.most_sequences == pytest.approx(np.percentile(counted, 95), rel=0.2)


def test_more_tokens_than_a_worker_can_emit_never_settle():
    model = EngineModel(performance=Performance(decode_ms_per_seq=1.0))

    found = decoding(model, Shape.of(prompt=1_000, output=100), 20.0, 1.0, 1, 95)

    assert found.itl_ms == np.inf


def test_bursts_show_as_dispersion():
    rng = np.random.default_rng(4)
    random = rng.poisson(20, 2_000).astype(float)
    bursty = rng.poisson(rng.choice([5, 35], 2_000)).astype(float)

    assert dispersion_of(random) == pytest.approx(1.0, abs=0.15)
    assert dispersion_of(bursty) > 5


def test_prompts_take_what_the_router_s_own_arithmetic_says():
    model = EngineModel()

    found = prefill_ms(model, np.array([10_000.0]), np.array([2_000.0]))

    assert found[0] == pytest.approx(model.performance.prefill_ms(8_000, cached=2_000))
