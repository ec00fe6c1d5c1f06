"""The model of a worker's speed: its sums, and what it learns from reports."""

import random
from dataclasses import replace

import pytest

from stafette.router.errors import InvalidValue
from stafette.router.performance import Learner, Performance, StepReport

ROUND = Performance(
    step_ms=10.0,
    prefill_ms_per_token=0.1,
    prefill_ms_per_pair=0.001,
    decode_ms_per_seq=1.0,
    decode_ms_per_kv_token=0.01,
    max_num_batched_tokens=100,
)
TRUTH = Performance(
    step_ms=4.0,
    prefill_ms_per_token=0.05,
    prefill_ms_per_pair=2e-6,
    decode_ms_per_seq=0.1,
    decode_ms_per_kv_token=1e-4,
)


def report(rng: random.Random, decode=True, prefill=True, slower=1.0) -> StepReport:
    tokens = rng.choice([0, 512, 4096, 8192]) if prefill else 0
    before = rng.choice([0, 8192, 65_536])
    pairs = tokens * (before + tokens / 2)
    sequences = rng.randrange(0, 200) if decode else 0
    kv_tokens = sequences * rng.randrange(100, 4_000)
    exact = (
        TRUTH.decode_step_ms(sequences, kv_tokens)
        + tokens * TRUTH.prefill_ms_per_token
        + pairs * TRUTH.prefill_ms_per_pair
    )
    wall_ms = exact * slower * rng.uniform(0.97, 1.03)
    return StepReport(wall_ms, tokens, pairs, sequences, kv_tokens)


def test_prompt_costs_its_steps_its_tokens_and_its_pairs():
    assert ROUND.prefill_ms(100) == pytest.approx(10 + 10 + 5)
    assert ROUND.prefill_ms(100, cached=1000) == pytest.approx(10 + 10 + 105)
    assert ROUND.prefill_ms(101) == pytest.approx(20 + 10.1 + 5.1005)
    assert ROUND.prefill_ms(0) == 0.0


def test_decode_step_costs_its_sequences_and_their_contexts():
    assert ROUND.decode_step_ms(5, 200) == pytest.approx(10 + 5 + 2)
    assert ROUND.added_step_ms(50) == pytest.approx(1.5)


def test_model_is_learned_from_reports_whatever_the_prior():
    rng = random.Random(0)
    for prior in (Performance(), replace(ROUND, max_num_batched_tokens=8_192), TRUTH):
        learner = Learner(prior)
        for _ in range(2_000):
            learner.learn(report(rng))

        learned = learner.performance
        for tokens, cached in ((512, 0), (8_192, 0), (8_192, 65_536)):
            expected = TRUTH.prefill_ms(tokens, cached)
            assert learned.prefill_ms(tokens, cached) == pytest.approx(expected, rel=0.1)
        expected = TRUTH.decode_step_ms(100, 200_000)
        assert learned.decode_step_ms(100, 200_000) == pytest.approx(expected, rel=0.1)
        assert learner.error < 0.1


def test_what_was_learned_stays_right_however_many_reports_come():
    """Some days of a worker's reports that fit exactly: nothing may add up to an error."""
    rng, learner, off = random.Random(4), Learner(TRUTH), 0.0
    for _ in range(45_000):
        tokens = rng.randrange(500, 8_000) if rng.random() < 0.1 else 0
        pairs, sequences = tokens * tokens / 2, 0 if tokens else rng.randrange(1, 17)
        kv_tokens = sequences * rng.randrange(2_900, 3_200)
        exact = tokens * TRUTH.prefill_ms_per_token + pairs * TRUTH.prefill_ms_per_pair
        exact += TRUTH.decode_step_ms(sequences, kv_tokens)
        learner.learn(StepReport(exact, tokens, pairs, sequences, kv_tokens))
        off = max(off, abs(learner.performance.decode_step_ms(10, 30_000) - 8.0))

    assert off < 0.001
    assert learner.rejected == 0
    assert learner.performance.prefill_ms(3_000) == pytest.approx(TRUTH.prefill_ms(3_000))


def test_class_that_never_decodes_keeps_its_decode_priors():
    rng = random.Random(1)
    learner = Learner(Performance())
    for _ in range(20_000):
        learner.learn(report(rng, decode=False))

    assert learner.performance.decode_ms_per_seq == Performance().decode_ms_per_seq
    assert learner.performance.decode_ms_per_kv_token == Performance().decode_ms_per_kv_token
    learner.learn(report(rng))
    assert learner.performance.decode_ms_per_seq < 1.0


def test_hiccup_changes_nothing():
    rng = random.Random(2)
    learner = Learner(TRUTH)
    for _ in range(200):
        learner.learn(report(rng))
    before = learner.performance

    learner.learn(StepReport(5_000.0, decode_sequences=10, decode_kv_tokens=1_000))

    assert learner.performance == before
    assert learner.rejected == 1


def test_worker_that_has_become_slower_is_believed_after_a_while():
    rng = random.Random(3)
    learner = Learner(TRUTH)
    for _ in range(500):
        learner.learn(report(rng))

    for _ in range(1_000):
        learner.learn(report(rng, slower=5.0))

    expected = 5 * TRUTH.prefill_ms(8_192)
    assert learner.performance.prefill_ms(8_192) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "nonsense",
    [
        StepReport(0.0, 100),
        StepReport(-1.0, 100),
        StepReport(float("nan"), 100),
        StepReport(float("inf"), 100),
        StepReport(10.0, -1),
        StepReport(10.0, 1, float("nan")),
        StepReport(10.0, 0, 0.0, 1, -5),
    ],
)
def test_report_that_cannot_be_is_rejected_and_counted(nonsense):
    learner = Learner(TRUTH)

    learner.learn(nonsense)

    assert learner.performance == TRUTH
    assert learner.rejected == 1


def test_no_report_makes_any_part_negative():
    rng = random.Random(4)
    learner = Learner(TRUTH)
    for _ in range(500):
        sizes = rng.choice([(1, 0, 0, 0), (8_000, 1e7, 0, 0), (0, 0, 250, 90_000)])
        learner.learn(StepReport(rng.uniform(0.1, 30.0), *sizes))
        parts = learner.performance
        assert parts.step_ms >= 0
        assert min(parts.prefill_ms_per_token, parts.prefill_ms_per_pair) >= 0
        assert min(parts.decode_ms_per_seq, parts.decode_ms_per_kv_token) >= 0


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_bad_part_is_refused_by_name(value):
    with pytest.raises(InvalidValue, match="performance.step_ms"):
        Performance(step_ms=value)
