"""How long requests wait, are computed and are answered."""

from stafette.workers import LLM, SamplingParams
from stafette.workers.request_times import RequestTimes


def test_each_part_of_a_requests_time_is_counted_once():
    now = 0.0
    times = RequestTimes(lambda: now)

    times.arrived(1)
    now = 2.0
    times.admitted([1])
    now = 5.0
    times.answered(1)
    now = 6.0
    times.admitted([1])  # it was set back
    times.answered(1)
    now = 9.0
    times.finished(1)

    sums = [each.sum for each in (times.queued, times.prefill, times.decode)]
    assert sums == [2.0, 3.0, 4.0]
    assert [sum(each.counts) for each in (times.queued, times.prefill, times.decode)] == [1, 1, 1]


def test_what_is_aborted_is_forgotten():
    times = RequestTimes(lambda: 0.0)
    times.arrived(1)

    times.forget(1)
    times.admitted([1])

    assert sum(times.queued.counts) == 0


def test_an_engine_counts_every_sequence_and_keeps_none():
    llm = LLM(model="smollm2", max_model_len=256, num_kv_blocks=64, num_threads=1)
    try:
        llm.generate(["a", "b"], SamplingParams(max_tokens=3, n=2), use_tqdm=False)
        times = llm.engine.times
    finally:
        llm.close()

    assert sum(times.queued.counts) == sum(times.decode.counts) == 4
    assert {**times._waiting, **times._computed, **times._answered} == {}
