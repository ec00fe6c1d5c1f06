"""What comes, and when: the same from the same seed, at the rates and lengths that were asked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.prompts import Piece, prompt_of
from stafette.platform.twin.workloads.config import (
    AgentsConfig,
    BurstyConfig,
    DiurnalConfig,
    LengthsConfig,
    PoissonConfig,
    SessionsConfig,
    ShiftConfig,
    StairsConfig,
    StepConfig,
    TraceConfig,
    WorkloadConfig,
)
from stafette.platform.twin.workloads.making import make_workload

OPEN = {
    "poisson": PoissonConfig(requests_s=5),
    "bursty": BurstyConfig(requests_s=5),
    "diurnal": DiurnalConfig(requests_s=5, period_s=200, bursts=2),
    "step": StepConfig(requests_s=5, factor=3, at_s=100),
    "stairs": StairsConfig(rates=((0.0, 5.0), (100.0, 1.0))),
}
FOLLOWED = {"sessions": SessionsConfig(), "agents": AgentsConfig(fan_out=2)}
EXACT = LengthsConfig(prompt_tokens=100, prompt_spread=0, output_tokens=7, output_spread=0)


def arrivals(**options):
    return list(make_workload(WorkloadConfig(**options)).arrivals())


def told(coming):
    return [(a.at_s, a.make_prompt().token_ids, a.output_tokens) for a in coming]


@pytest.mark.parametrize("kind", [*OPEN, *FOLLOWED])
def test_the_seed_says_it_all(kind):
    asked = {kind: (OPEN | FOLLOWED)[kind], "duration_s": 20.0}

    assert told(arrivals(seed=1, **asked)) == told(arrivals(seed=1, **asked))
    assert told(arrivals(seed=1, **asked)) != told(arrivals(seed=2, **asked))


@pytest.mark.parametrize("kind", OPEN)
def test_requests_come_in_the_order_of_time_and_until_the_end(kind):
    times = [a.at_s for a in arrivals(duration_s=200.0, **{kind: OPEN[kind]})]

    assert times == sorted(times)
    assert 0 <= times[0]
    assert times[-1] < 200


def count(coming, first, end):
    return sum(first <= a.at_s < end for a in coming)


def test_a_step_multiplies_the_rate_and_takes_it_back():
    step = StepConfig(requests_s=10, factor=5, at_s=100, until_s=200)

    coming = arrivals(duration_s=300.0, step=step)

    assert count(coming, 0, 100) == pytest.approx(1_000, rel=0.15)
    assert count(coming, 100, 200) == pytest.approx(5_000, rel=0.1)
    assert count(coming, 200, 300) == pytest.approx(1_000, rel=0.15)


def test_a_factor_of_zero_is_silence():
    coming = arrivals(duration_s=90.0, step=StepConfig(factor=0, at_s=30, until_s=60))

    assert count(coming, 30, 60) == 0
    assert count(coming, 60, 90) > 0


def test_a_day_has_its_peak_in_the_middle():
    coming = arrivals(duration_s=400.0, diurnal=DiurnalConfig(requests_s=10, period_s=400))

    assert count(coming, 150, 250) > 4 * count(coming, 0, 50) + 4 * count(coming, 350, 400)


def test_bursts_are_bursts():
    bursty = BurstyConfig(requests_s=2, factor=10, burst_s=20, quiet_s=20)

    coming = arrivals(duration_s=300.0, bursty=bursty)

    each = [count(coming, at, at + 10) for at in range(0, 300, 10)]
    assert min(each) < 40
    assert max(each) > 150


def test_lengths_are_log_normal_around_their_means():
    lengths = LengthsConfig(prompt_tokens=1_000, output_tokens=100)

    coming = arrivals(duration_s=400.0, poisson=OPEN["poisson"], lengths=lengths)

    outputs = [a.output_tokens for a in coming]
    assert sum(outputs) / len(outputs) == pytest.approx(100, rel=0.05)
    assert max(outputs) > 250


def test_prompts_share_one_of_some_beginnings():
    lengths = LengthsConfig(prompt_tokens=100, prompt_spread=0, shared_tokens=60, beginnings=3)

    coming = arrivals(duration_s=40.0, poisson=OPEN["poisson"], lengths=lengths)

    prompts = [tuple(a.make_prompt().token_ids) for a in coming]
    assert len({prompt[:60] for prompt in prompts}) == 3
    assert len({prompt[60:] for prompt in prompts}) == len(prompts)


def test_a_shift_changes_the_lengths():
    later = LengthsConfig(prompt_tokens=10, prompt_spread=0, output_tokens=70, output_spread=0)
    shift = ShiftConfig(at_s=50, over_s=50, lengths=later)

    coming = arrivals(duration_s=150.0, poisson=OPEN["poisson"], lengths=EXACT, shift=shift)

    assert {a.output_tokens for a in coming if a.at_s < 50} == {7}
    assert {a.output_tokens for a in coming if 50 < a.at_s < 100} == {7, 70}
    assert {a.output_tokens for a in coming if a.at_s >= 100} == {70}


def test_a_turn_repeats_what_was_said_and_adds_to_it():
    sessions = SessionsConfig(turns=50, think_s=4, turn_tokens=10)
    first = arrivals(duration_s=30.0, sessions=sessions, lengths=EXACT)[0]
    prompt = first.make_prompt()

    (turn,) = first.follow(10.0, prompt, [5, 6, 7])

    assert turn.at_s > 10.0
    assert turn.session == first.session
    assert turn.make_prompt().token_ids[:103] == [*prompt.token_ids, 5, 6, 7]
    assert len(turn.make_prompt()) == 113
    assert turn.make_prompt().words.tolist() == turn.make_prompt().token_ids


def test_a_conversation_ends():
    first = arrivals(duration_s=30.0, sessions=SessionsConfig(turns=3), lengths=EXACT)[0]
    turns, turn = 1, [first]
    while turn:
        turns += 1
        turn = turn[0].follow(0.0, turn[0].make_prompt(), [1])
        assert turns < 100


def test_agents_share_their_instructions():
    coming = arrivals(duration_s=20.0, agents=AgentsConfig(shared_tokens=50, fan_out=2))

    prompts = [a.make_prompt().token_ids for a in coming]
    assert len({tuple(prompt[:50]) for prompt in prompts}) == 1
    assert prompts[0] == prompts[1]  # two rows of calls of one task
    assert prompts[0] != prompts[2]


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 40)), min_size=1, max_size=4))
def test_equal_pieces_are_equal_tokens_wherever_they_stand(pieces):
    whole = prompt_of([Piece(*piece) for piece in pieces])

    parts = [prompt_of([Piece(*piece)]).token_ids for piece in pieces]
    assert whole.token_ids == [token for part in parts for token in part]
    assert whole.words.tolist() == whole.token_ids
    assert min(whole.token_ids) >= 3


# Traces


def write(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def entry(at_ms, prompt, output, *blocks):
    return {
        "timestamp": at_ms,
        "input_length": prompt,
        "output_length": output,
        "hash_ids": blocks,
    }


def test_a_trace_is_read_with_its_shared_blocks(tmp_path):
    write(tmp_path / "t.jsonl", entry(2_000, 1_100, 5, 1, 2, 3), entry(0, 600, 9, 1, 4))

    workload = make_workload(
        WorkloadConfig(trace=TraceConfig(file="t.jsonl", speedup=2.0)), tmp_path
    )

    early, late = workload.arrivals()
    assert (early.at_s, late.at_s) == (0.0, 1.0)
    assert (early.output_tokens, late.output_tokens) == (9, 5)
    assert len(late.make_prompt()) == 1_100
    assert late.make_prompt().token_ids[:512] == early.make_prompt().token_ids[:512]
    assert late.make_prompt().token_ids[512:600] != early.make_prompt().token_ids[512:]
    assert workload.duration_s == 1.0


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("{", "is not a request of a trace"),
        ("[]", "is not a request of a trace"),
        (json.dumps(entry(0, 600, 9, 1)), "has 1 hash_ids, too few for its 600 tokens"),
        (json.dumps(entry(-5, 6, 9, 1)), "timestamp is -5"),
        (json.dumps(entry(0, 6, 9, -1)), "has a hash_id below 0"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, remedy):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(entry(0, 6, 9, 1)) + "\n" + line + "\n")

    with pytest.raises(InvalidSetting, match="t.jsonl:2") as caught:
        make_workload(WorkloadConfig(trace=TraceConfig(file=str(path))))

    assert remedy in str(caught.value)


def test_a_trace_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidSetting, match=r"trace.file = .*cannot be read"):
        make_workload(WorkloadConfig(trace=TraceConfig(file="none.jsonl")), tmp_path)
