"""Random lives of the scheduler, in every mode: books exact, content right, nobody starves."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STEMS = [[(i * 7 + k * 13 + i * i * k) % 40 for i in range(40)] for k in range(3)]

prompts = st.builds(
    lambda stem, length, tail: STEMS[stem][:length] + tail,
    st.integers(0, 2),
    st.integers(0, 30),
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
        "salt": st.sampled_from(["a", "b"]),
        "priority": st.integers(-2, 2),
    },
)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), prompts, params),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("launch")),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("fail"), st.integers(0, 30)),
        st.tuples(st.just("pin"), st.integers(0, 30)),
        st.tuples(st.just("unpin")),
        st.tuples(st.just("reset")),
    ),
    max_size=40,
)
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
modes = st.sampled_from(
    [
        {"async_scheduling": False},
        {"async_scheduling": True},
        {"speculative_tokens": 3},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 48},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 40, "async_scheduling": True},
    ]
)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(flags, modes, moves)
def test_whatever_happens_every_answer_is_the_naive_one_and_no_block_is_lost(
    harness, flags, mode, moves
):
    run = harness(max_model_len=48, **(flags | mode))
    aborted, failed = set(), set()

    for move in moves:
        _play(run, move, aborted, failed)
    run.pinned and run.pool.unpin(run.pinned)
    run.pinned = []
    run.run()

    for seq_id, seq in run.seqs.items():
        tokens, reason = run.expected(seq)
        stream = run.streams[seq_id]
        assert seq.output_token_ids == stream or seq_id in aborted
        if seq.finish_reason == reason and seq_id not in aborted | failed:
            assert stream == tokens
            assert run.ends[seq_id].finish_reason == reason
        else:
            assert seq.finish_reason == ("abort" if seq_id in aborted else "error")
            assert stream == tokens[: len(stream)]


def _play(run, move, aborted, failed):
    match move:
        case ("add", prompt, params):
            if (
                len(prompt) <= run.config.max_num_batched_tokens
                or run.config.enable_chunked_prefill
            ):
                params = params | {"max_tokens": params["max_tokens"] or None}
                run.add(prompt, **params)
        case ("step", count):
            for _ in range(count):
                run.step()
        case ("launch",):
            run.launch()
        case ("abort", index) if index in run.seqs:
            if run.abort(index):
                aborted.add(index)
        case ("fail", index) if index in run.seqs:
            run.device.to_fail.add(index)
            failed.add(index)
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
