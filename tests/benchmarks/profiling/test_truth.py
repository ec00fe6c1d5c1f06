"""What is compared with the twin, and what the twin is told."""

import pytest

from benchmarks.profiling.truth_calibration import Slowness, alone, fitted, slower
from benchmarks.profiling.truth_traffic import Asked, Found, Mix
from benchmarks.profiling.truth_twin import Calibrated, Setup
from stafette.workers.mocker.speed_profile import Profile

FLAGS = {
    "max_model_len": 1024,
    "num_kv_blocks": 256,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "num_threads": 1,
}
# A prompt of 100 tokens takes 110 ms, a step 10 ms.
SPEED = Profile(
    step_ms=10.0,
    prefill_ms_per_token=1.0,
    prefill_ms_per_pair=0.0,
    decode_ms_per_seq=0.0,
    decode_ms_per_kv_token=0.0,
    transfer_latency_ms=0.0,
    transfer_gb_s=1e6,
)
MIX = Mix(prompts=(100, 100), outputs=(11, 11))


def twin(tmp_path, **told):
    return Calibrated(setup=Setup(flags=FLAGS, mix=MIX, speed=SPEED), folder=tmp_path, **told)


def test_both_get_the_same_requests_every_time():
    assert MIX.draw(2.0, 20, seed=5) == MIX.draw(2.0, 20, seed=5)
    assert MIX.draw(2.0, 20, seed=5) != MIX.draw(2.0, 20, seed=6)


def test_another_rate_changes_when_they_come_and_nothing_else():
    mix = Mix(prompts=(10, 90), outputs=(5, 9))
    slow, fast = mix.draw(1.0, 20, seed=5), mix.draw(2.0, 20, seed=5)

    assert [each.prompt_tokens for each in slow] == [each.prompt_tokens for each in fast]
    assert slow[-1].at_s - slow[0].at_s == pytest.approx(2 * (fast[-1].at_s - fast[0].at_s))


def test_the_twin_foretells_a_lone_request(tmp_path):
    found = twin(tmp_path).foretell([Asked(1.0, 100, 11)])

    assert found.itl_ms == pytest.approx([10.0], rel=0.05)
    assert 110 <= found.ttft_ms[0] <= 135  # with or without a hand-over


def test_what_comes_before_placing_is_added_to_the_first_token(tmp_path):
    asked = alone(MIX, 3, seed=1)

    plain, later = twin(tmp_path), twin(tmp_path, frontend_s=0.05)

    assert later.foretell(asked).ttft_ms == pytest.approx(
        [ms + 50 for ms in plain.foretell(asked).ttft_ms]
    )


def test_a_worker_is_slowed_by_as_much_as_the_other_is_busy():
    prefill, decode = Slowness(prefill=1.5, decode=2.0).speeds(SPEED, 0.2, 0.4)

    # the prefill worker is beside one that is busy for 40 %: 1 + 0.5 x 0.4
    assert prefill == slower(SPEED, 1.2)
    assert decode == slower(SPEED, 1.2)
    assert slower(SPEED, 1.2).step_ms == pytest.approx(12.0)
    assert slower(SPEED, 1.2).kv_bytes_per_token == SPEED.kv_bytes_per_token


def test_slowness_lengthens_what_the_twin_foretells(tmp_path):
    asked = MIX.draw(4.0, 20, seed=1)
    slowness = Slowness(prefill=1.0, decode=2.0)

    plain, slowed = (
        twin(tmp_path).foretell(asked),
        twin(tmp_path, slowness=slowness).foretell(asked),
    )

    assert sum(slowed.itl_ms) > 1.1 * sum(plain.itl_ms)


def test_the_slowness_of_a_load_that_was_served_is_found_again(tmp_path):
    asked = MIX.draw(5.0, 20, seed=1)
    truth = Slowness(prefill=1.5, decode=1.3)
    served = twin(tmp_path, slowness=truth).foretell(asked)

    found = fitted(served, lambda each: twin(tmp_path, slowness=each).foretell(asked))

    assert found == truth


def test_the_busier_worker_bounds_the_capacity():
    # 1000 / 110 prompts a second; decoding costs nothing here but its steps
    assert Setup(flags=FLAGS, mix=MIX, speed=SPEED).capacity == pytest.approx(1000 / 110)


def test_percentiles_are_those_of_requests():
    found = Found(tokens_s=1.0, ttft_ms=[3.0, 1.0, 2.0], itl_ms=[1.0], handed_over=0)

    assert found.figures()["TTFT p50 ms"] == 2.0
