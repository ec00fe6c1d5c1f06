"""A fleet on a virtual clock: times, costs, failures, and what a scaler may do to it."""

import pytest

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import SloConfig
from stafette.platform.twin.config import FaultConfig
from stafette.platform.twin.prompts import Piece

MANY = [(0.05 * number, 200 + 10 * number, 80) for number in range(30)]


def ttfts(results):
    return [each.ttft_s for each in results.served]


def test_a_prompt_takes_its_tokens_time_and_each_token_a_step(stage):
    results = stage.run(stage.given((1.0, 1_000, 11)))

    (served,) = results.served
    assert served.ttft_s == pytest.approx(0.110)  # 10 ms, and 1000 x 0.1 ms
    assert served.itl_s == pytest.approx(0.010)
    assert served.done_s == pytest.approx(1.210)


def test_a_request_waits_for_the_step_that_runs(stage):
    results = stage.run(stage.given((0.0, 1_000, 5), (0.05, 500, 5)))

    assert ttfts(results) == pytest.approx([0.110, 0.120])  # 60 ms to wait, 60 ms to compute


def test_what_is_cached_is_not_computed_again(stage):
    shared = Piece(7, 800)
    prompts = {0: [shared, Piece(8, 200)], 1: [shared, Piece(9, 200)]}

    results = stage.run(stage.given((0.0, 0, 2), (1.0, 0, 2), prompts=prompts))

    assert [each.cached_tokens for each in results.served] == [0, 800]
    assert ttfts(results)[1] == pytest.approx(0.030)
    assert results.hit_share == pytest.approx(0.4)


def test_prompts_are_handed_over_between_pools(stage):
    results = stage.run(stage.given(*MANY), pools={"prefill": 1, "decode": 1})

    assert results.counters["handed_over"] > 25  # a short one may stay where it is answered
    assert len(results.served) == 30
    prompts = sum(each.prompt_tokens for each in results.served)
    decode = stage.twin.fleet.replicas["decode-1"].worker
    assert decode.imports.counters.pulled_tokens > 0.9 * prompts


def test_the_same_description_gives_the_same_figures(stage):
    first = stage.run(stage.given(*MANY), pools={"prefill": 2, "decode": 2}).to_dict()

    again = stage.run(stage.given(*MANY), pools={"prefill": 2, "decode": 2}).to_dict()

    assert again == first


def test_promises_are_kept_or_not_request_by_request(stage):
    slo = SloConfig(ttft_ms=115, itl_ms=50)

    results = stage.run(stage.given((0.0, 1_000, 5), (0.05, 500, 5)), slo=slo)

    assert [each.kept for each in results.served] == [True, False]
    assert results.attainment == 0.5
    assert not results.promise_kept


def test_gpu_hours_count_from_the_wish_to_the_end(stage):
    def grow(twin, now):
        if now == 100:
            twin.fleet.set_replicas("workers", 3)

    results = stage.run(stage.given((0.0, 100, 2), duration_s=1_000), start_s=50, on_tick=grow)

    assert results.gpu_hours["workers"] == pytest.approx((1_000 + 2 * 900) / 3_600)
    ready = [r.ready_s for r in stage.twin.fleet.replicas.values()]
    assert ready == [0.0, 150.0, 150.0]


# What a scaler may do


def test_requests_wait_for_the_first_worker_to_start(stage):
    def wake(twin, now):
        if twin.dispatch.num_waiting:
            twin.fleet.set_replicas("workers", 1)

    results = stage.run(stage.given((2.5, 100, 5)), pools={"workers": 0}, on_tick=wake, start_s=5)

    assert ttfts(results) == pytest.approx([5.5 + 0.02])  # from 2.5: the next tick, 5 s, 20 ms


def test_who_waits_too_long_has_failed(stage):
    results = stage.run(stage.given((0.0, 100, 5)), pools={"workers": 0})

    assert results.failures == {"no worker could take it": 1}
    assert results.attainment == 0.0


def test_answers_move_off_a_worker_that_is_released(stage):
    whole = stage.run(stage.given(*MANY), pools={"workers": 2}) and stage.answers

    def release(twin, now):
        if now == 1:
            twin.fleet.release("workers-1")

    results = stage.run(stage.given(*MANY), pools={"workers": 2}, on_tick=release)

    assert results.counters["moved"] > 3
    assert stage.answers == whole
    gone = stage.twin.fleet.gone[0]
    assert gone.name == "workers-1"
    assert gone.gone_s < 2.0


def test_the_last_worker_keeps_its_answers_until_they_end(stage):
    def release(twin, now):
        if now == 1:
            twin.fleet.release("workers-1")

    results = stage.run(stage.given((0.9, 100, 200), duration_s=5), on_tick=release)

    assert len(results.served) == 1
    assert stage.twin.fleet.gone[0].gone_s > results.served[0].done_s - 0.1


def test_fewer_replicas_let_go_those_that_start_first(stage):
    def shrink(twin, now):
        if now == 1:
            twin.fleet.set_replicas("workers", 4)
        if now == 3:
            twin.fleet.set_replicas("workers", 2)

    stage.run(stage.given((10.0, 100, 2)), pools={"workers": 2}, on_tick=shrink)

    assert {replica.name for replica in stage.twin.fleet.gone} == {"workers-3", "workers-4"}
    assert all(replica.lived_s(99.0) == 2.0 for replica in stage.twin.fleet.gone)


def test_a_role_flips_at_once_and_what_runs_stays(stage):
    def flip(twin, now):
        if now == 1:
            twin.fleet.set_role("decode-2", "prefill")

    results = stage.run(stage.given(*MANY), pools={"prefill": 1, "decode": 2}, on_tick=flip)

    assert len(results.served) == 30
    decisions = stage.twin.router.explain(100)
    for decision in (each for each in decisions if each.at != 1.0):
        prefillers = {option.prefill for option in decision.options}
        assert ("decode-2" in prefillers) == (decision.at > 1.0)


def test_a_window_tells_what_happened_since_the_last_one(stage):
    windows = []

    stage.run(stage.given(*MANY), on_tick=lambda twin, now: windows.append(twin.observe()))

    assert sum(window.arrivals for window in windows) == 30
    assert sum(len(window.started) for window in windows) == 30
    assert windows[1].arrivals == 20
    assert windows[2].since_s == 1.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda fleet: fleet.set_replicas("x", 1), "pool = 'x': does not exist; there are workers"),
        (lambda fleet: fleet.set_replicas("workers", -1), "replicas of workers = -1"),
        (lambda fleet: fleet.release("w-7"), "worker = 'w-7': does not exist; there are workers-1"),
    ],
)
def test_an_impossible_wish_names_what_is_wrong(stage, change, told):
    def wish(twin, now):
        with pytest.raises(InvalidSetting, match=told):
            change(twin.fleet)

    stage.run(stage.given((0.0, 100, 2)), on_tick=wish)


# What may go wrong


def test_answers_go_on_elsewhere_when_their_worker_is_killed(stage):
    whole = stage.run(stage.given(*MANY), pools={"workers": 2}) and stage.answers
    faults = (FaultConfig(at_s=1.0, kill="workers-1"),)

    results = stage.run(stage.given(*MANY), pools={"workers": 2}, faults=faults)

    assert results.counters["lost"] > 3
    assert stage.answers == whole
    assert set(stage.twin.fleet.replicas) == {"workers-2", "workers-3"}


@pytest.mark.parametrize("victim", ["prefill-1", "decode-1"])
@pytest.mark.parametrize("noticed_s", [0.0, 0.5])
def test_either_half_of_a_hand_over_may_die(stage, victim, noticed_s):
    pools = {"prefill": 2, "decode": 2}
    whole = stage.run(stage.given(*MANY), pools=pools) and stage.answers
    faults = (FaultConfig(at_s=0.72, kill=victim, noticed_s=noticed_s),)

    results = stage.run(stage.given(*MANY), pools=pools, faults=faults)

    assert not results.failures
    assert results.counters["lost"] > 0
    assert stage.answers == whole


def test_a_slow_worker_is_slow_for_so_long(stage):
    faults = (FaultConfig(at_s=1.0, slow="workers", factor=3.0, for_s=1.0),)

    results = stage.run(stage.given((0.0, 100, 2), (1.1, 100, 2), (2.5, 100, 2)), faults=faults)

    assert ttfts(results) == pytest.approx([0.020, 0.060, 0.020])


def test_starts_can_get_slower(stage):
    faults = (FaultConfig(at_s=1.0, start_s=20.0, pool="workers"),)

    def grow(twin, now):
        if now == 2:
            twin.fleet.set_replicas("workers", 2)

    stage.run(stage.given((30.0, 100, 2)), faults=faults, on_tick=grow)

    assert stage.twin.fleet.replicas["workers-2"].ready_s == 22.0


def test_a_prompt_that_no_worker_can_hold_fails_alone(stage):
    results = stage.run(stage.given((0.0, 100, 2), (0.0, 50_000, 2)))

    assert len(results.served) == 1
    assert list(results.failures.values()) == [1]
