"""Random lives of the scheduler, in every mode: books exact, content right, nobody starves."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STEMS = [[(i * 7 + k * 13 + i * i * k) % 40 for i in range(40)] for k in range(3)]

prompts = st.builds(
    lambda stem, length, tail: STEMS[stem][:length] + tail,
    st.integers(0, 2),
    st.sampled_from([0, 6, 12, 20, 30]),
    st.lists(st.integers(0, 39), min_size=1, max_size=5),
)
params = st.fixed_dictionaries(
    {
        "max_tokens": st.one_of(st.none(), st.integers(1, 20)),
        "ignore_eos": st.booleans(),
    },
    optional={
        "stop_token_ids": st.lists(st.integers(0, 39), max_size=3).map(tuple),
        "min_tokens": st.just(1),
        "prompt_logprobs": st.just(0),
        "salt": st.just("a"),
        "priority": st.integers(-2, 2),
    },
)
requests = st.tuples(st.just("add"), st.lists(st.tuples(prompts, params), min_size=1, max_size=4))
tails = st.lists(st.integers(0, 39), min_size=1, max_size=3)
continued = st.tuples(st.just("continue"), st.integers(0, 30), tails)
steps = st.tuples(st.just("step"), st.integers(1, 6))
others = st.one_of(
    st.tuples(st.just("launch")),
    st.tuples(st.just("abort"), st.integers(1, 40)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("pin"), st.integers(0, 30)),
    st.tuples(st.just("unpin")),
    st.tuples(st.just("reset")),
)
moves = st.lists(st.one_of(requests, continued, steps, steps, others), min_size=12, max_size=50)
flags = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(12, 30),
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.integers(6, 48),
        "enable_prefix_caching": st.booleans(),
        "preallocate_kv": st.sampled_from([False, False, False, True]),
        "continuous_batching": st.sampled_from([True, True, True, False]),
        "priority_step_s": st.sampled_from([0.0, 3.0]),
    }
)
MODES = [
    {"async_scheduling": False},
    {"async_scheduling": True},
    {"speculative_tokens": 3},
    {"enable_chunked_prefill": False, "max_num_batched_tokens": 48},
    {"enable_chunked_prefill": False, "max_num_batched_tokens": 40, "async_scheduling": True},
]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(flags, st.sampled_from(MODES), moves)
def test_whatever_happens_every_answer_is_the_naive_one_and_no_block_is_lost(
    harness, flags, mode, moves
):
    _live(harness(max_model_len=48, **(flags | mode)), moves)


@pytest.mark.parametrize("mode", MODES)
def test_long_and_crowded_lives_end_as_well(harness, mode):
    hits = preemptions = 0
    for seed in range(25):
        rng = random.Random(seed)
        flags = {"num_blocks": rng.randint(12, 30), "max_num_seqs": 6} | mode
        run = harness(**({"max_num_batched_tokens": 32, "max_model_len": 48} | flags))
        _live(run, (_random_move(rng) for _ in range(120)))
        stats = run.scheduler.stats()
        hits, preemptions = hits + stats.prefix_hits, preemptions + stats.num_preemptions

    assert hits > 1000  # else this would show nothing
    assert preemptions > 10


def _live(run, moves):
    aborted = set()
    for move in moves:
        _play(run, move, aborted)
    run.pool.unpin(run.pinned)
    run.pinned.clear()
    run.run()

    for seq_id, seq in run.seqs.items():
        tokens, reason = run.expected(seq)
        stream = run.streams[seq_id]
        if seq_id in aborted | run.device.failed:
            assert seq.finish_reason == ("abort" if seq_id in aborted else "error")
            assert stream == tokens[: len(stream)]
        else:
            assert (stream, run.ends[seq_id].finish_reason) == (tokens, reason)


def _random_move(rng):
    kind = rng.choice(["add", "continue", "step", "step", "step", "other"])
    if kind == "add":
        prompt = rng.choice(STEMS)[: rng.choice([0, 6, 12, 20, 30])] + [rng.randrange(40)]
        params = {"max_tokens": rng.randint(1, 16), "ignore_eos": True}
        return kind, [(prompt, params | {"priority": rng.choice([0, 0, 0, 1])})]
    if kind == "continue":
        return kind, rng.randrange(1000), [rng.randrange(40)]
    if kind == "step":
        return kind, rng.randint(1, 3)
    others = ["launch", "abort", "fail", "pin", "unpin", "reset"]
    kind = rng.choices(others, [6, 4, 2, 2, 3, 1])[0]
    return (kind, rng.randrange(60)) if kind in ("abort", "fail", "pin") else (kind,)


def _play(run, move, aborted):
    match move:
        case ("add", requests):
            for prompt, params in requests:
                run.add(prompt, **params)
        case ("continue", index, tail) if run.seqs:
            known = run.seqs[index % len(run.seqs) + 1].token_ids[:37]
            run.add(known + tail, max_tokens=4)
        case ("step", count):
            for _ in range(count):
                run.step()
        case ("launch",):
            run.launch()
        case ("abort", seq_id):
            if run.abort(seq_id):
                aborted.add(seq_id)
        case ("fail", index):
            run.device.to_fail.add(index)
        case ("pin", index):
            idle = [b for b in run.pool._index.values() if b not in run.pinned]
            if idle and run.pool.num_available > 12:
                block = idle[index % len(idle)]
                run.pool.pin([block])
                run.pinned.append(block)
        case ("unpin",) if run.pinned:
            run.pool.unpin([run.pinned.pop()])
        case ("reset",):
            run.pool.reset_prefix_cache()
    run.check()
