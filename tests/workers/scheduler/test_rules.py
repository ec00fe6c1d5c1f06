"""The rules of a batch and of an answer, one by one."""

import pytest

from stafette.workers.batch import Sampled, StepOutput
from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, RequestError
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.scheduler_config import SchedulerConfig, check_capacity

LONG = {"ignore_eos": True, "max_tokens": 20}


def shares(batch) -> list[tuple[int, int]]:
    """Return who computes how many tokens."""
    return [(step.seq_id, step.num_tokens) for step in batch.seqs]


def test_decode_comes_first_then_running_prompts_then_waiting_ones(harness):
    run = harness(max_num_batched_tokens=10, max_num_seqs=4, enable_prefix_caching=False)
    run.add([1] * 4, **LONG)
    run.add([2] * 9, **LONG)
    run.step()
    run.add([3] * 5, **LONG)

    run.step()
    run.step()

    assert shares(run.batches[0]) == [(1, 4), (2, 6)]
    assert shares(run.batches[1]) == [(1, 1), (2, 3), (3, 5)]
    assert shares(run.batches[2]) == [(1, 1), (2, 1), (3, 1)]


def test_prompt_longer_than_the_budget_is_computed_in_chunks(harness):
    run = harness(max_num_batched_tokens=8, max_num_seqs=2)
    run.add(list(range(20)), max_tokens=1)

    run.run()

    assert [shares(batch) for batch in run.batches] == [[(1, 8)], [(1, 8)], [(1, 4)]]
    assert [batch.seqs[0].sample for batch in run.batches] == [False, False, True]


def test_without_chunked_prefill_a_prompt_waits_until_it_fits_whole(harness):
    run = harness(max_num_batched_tokens=10, max_num_seqs=4, enable_chunked_prefill=False)
    run.add([1] * 8, **LONG)
    run.add([2] * 9, **LONG)

    run.step()
    run.step()

    assert shares(run.batches[0]) == [(1, 8)]
    assert shares(run.batches[1]) == [(1, 1), (2, 9)]


def test_without_chunked_prefill_a_prompt_above_the_budget_is_refused(harness):
    run = harness(max_num_batched_tokens=10, enable_chunked_prefill=False)

    with pytest.raises(RequestError, match="max_num_batched_tokens = 10.*enable_chunked_prefill"):
        run.add([1] * 11)

    assert not run.scheduler.has_work


@pytest.mark.parametrize(("length", "named"), [(0, "at least one"), (16, "max_model_len = 16")])
def test_prompt_that_could_never_be_served_is_refused(harness, length, named):
    run = harness(max_model_len=16)

    with pytest.raises(RequestError, match=named):
        run.add([1] * length)


def test_small_prompt_does_not_overtake_one_that_lacks_blocks(harness):
    run = harness(num_blocks=8, max_model_len=32, enable_prefix_caching=False)
    run.add([1] * 16, max_tokens=8, ignore_eos=True)
    run.step()
    run.add([2] * 16, max_tokens=1)
    run.add([3] * 4, max_tokens=1)

    run.run()

    admitted = [new.seq_id for batch in run.batches for new in batch.added]
    assert admitted == [1, 2, 3]
    assert all(len(batch.seqs) == 1 for batch in run.batches[:8])


def test_admission_leaves_a_block_for_each_that_goes_before(harness):
    run = harness(num_blocks=8, max_model_len=32, enable_prefix_caching=False)
    run.add([1] * 4, **LONG)
    run.step()

    run.add([2] * 24, max_tokens=1)  # 6 blocks, and 1 + 1 would be left for the first
    run.step()

    assert run.scheduler.stats().num_waiting == 1
    assert run.scheduler.stats().num_preemptions == 0


def test_last_prompt_token_is_computed_even_when_all_are_cached(harness):
    run = harness()
    run.add(list(range(16)), max_tokens=1)
    run.run()

    again = run.add(list(range(16)), max_tokens=1)
    run.run()

    assert shares(run.batches[-1]) == [(2, 4)]  # the last of four blocks
    assert again.num_cached_tokens == 12
    assert run.ends[2].num_cached_tokens == 12
    assert (run.pool.queries, run.pool.hits) == (32, 12)


def test_request_for_prompt_logprobs_computes_the_whole_prompt(harness):
    run = harness()
    run.add(list(range(16)), max_tokens=1)
    run.run()

    run.add(list(range(16)), max_tokens=1, prompt_logprobs=0)
    run.run()

    assert shares(run.batches[-1]) == [(2, 16)]
    assert run.pool.queries == 16


def test_prompt_logprobs_are_handed_out_once(harness):
    run = harness(num_blocks=4, max_model_len=16, enable_prefix_caching=False)
    run.add([1] * 4, max_tokens=8, ignore_eos=True, prompt_logprobs=0)
    batch = run.scheduler.next_batch()
    output = run.device.execute(batch)
    output.prompt_logprobs[1] = []

    first = run.scheduler.settle(batch, output)[0]
    run.launch()
    batch = run.in_flight.popleft()
    output = run.device.execute(batch)
    output.prompt_logprobs[1] = []
    second = run.scheduler.settle(batch, output)[0]

    assert first.prompt_logprobs == []
    assert second.prompt_logprobs is None


def test_sequences_with_different_salts_share_nothing(harness):
    run = harness()
    for salt in ("a", "b", "a"):
        run.add(list(range(16)), max_tokens=1, salt=salt)
        run.run()

    assert [run.seqs[i].num_cached_tokens for i in (1, 2, 3)] == [0, 0, 12]


def test_two_that_compute_the_same_block_end_with_one(harness):
    run = harness(continuous_batching=False)  # so that nobody waits for the work of another
    run.add(list(range(8)) + [9], **LONG)
    run.add(list(range(8)) + [11], **LONG)

    run.step()

    first, second = (run.seqs[i].block_table for i in (1, 2))
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    run.run()


def test_siblings_wait_for_the_prompt_that_they_share(harness):
    run = harness()
    for _ in range(3):
        run.add(list(range(18)), max_tokens=1)

    run.run()

    assert [shares(batch) for batch in run.batches] == [[(1, 18)], [(2, 2), (3, 2)]]


def test_nobody_waits_for_blocks_that_a_reset_keeps_from_being_found(harness):
    run = harness(max_num_batched_tokens=12, max_num_seqs=4)
    run.add(list(range(18)), **LONG)
    run.launch()
    run.pool.reset_prefix_cache()
    run.step()
    found = run.pool.cached_hashes
    run.add(list(range(18)), max_tokens=1)

    run.step()

    assert found == []
    assert shares(run.batches[1]) == [(1, 6), (2, 6)]
    run.run()


def test_prompts_that_share_little_do_not_wait(harness):
    run = harness()
    run.add(list(range(4)) + [1] * 12, max_tokens=1)
    run.add(list(range(4)) + [2] * 12, max_tokens=1)

    run.step()

    assert shares(run.batches[0]) == [(1, 16), (2, 16)]
    run.run()


def test_when_blocks_run_out_the_last_in_line_gives_way(harness):
    run = harness(num_blocks=6, max_model_len=24)
    run.add([1] * 8, max_tokens=16, ignore_eos=True)
    run.add([2] * 7, max_tokens=16, ignore_eos=True)

    run.run()

    assert run.seqs[1].num_preemptions == 0
    assert run.seqs[2].num_preemptions > 0
    assert run.streams[2] == run.expected(run.seqs[2])[0]


def test_preempted_sequence_finds_its_own_blocks_again(harness):
    run = harness(num_blocks=6, max_model_len=24, max_num_seqs=2)
    run.add([1] * 8, max_tokens=8, ignore_eos=True)
    run.add([2] * 7, max_tokens=8, ignore_eos=True)

    run.run()

    introduced = [
        (step.start, new.output_token_ids)
        for batch in run.batches
        for new in batch.added
        for step in batch.seqs
        if step.seq_id == new.seq_id == 2
    ]
    assert introduced[0] == (0, [])
    assert introduced[1][0] > 0
    assert introduced[1][1] == run.streams[2][: len(introduced[1][1])]


def test_smaller_priority_number_is_served_first(harness):
    run = harness(max_num_seqs=1, priority_step_s=10.0)
    for priority in (2, 1, 0):
        run.add([priority] * 4, max_tokens=1, priority=priority)

    run.run()

    assert [new.seq_id for batch in run.batches for new in batch.added] == [3, 2, 1]


def test_waiting_outweighs_priority_in_the_end(harness):
    run = harness(max_num_seqs=1, priority_step_s=10.0)
    run.add([1] * 4, max_tokens=1, priority=1)
    run.now = 11.0
    run.add([2] * 4, max_tokens=1, priority=0)

    run.run()

    assert [new.seq_id for batch in run.batches for new in batch.added] == [1, 2]


def test_urgent_prompt_takes_the_place_of_one_that_runs(harness):
    run = harness(max_num_seqs=1)
    run.add([1] * 4, max_tokens=4, ignore_eos=True, priority=1)
    run.step()
    run.add([2] * 4, max_tokens=2, ignore_eos=True)

    run.run()

    assert [seq_id for batch in run.batches for seq_id, _ in shares(batch)] == [1, 2, 2, 1, 1, 1]


def test_urgent_prompt_goes_before_the_rest_of_a_long_one(harness):
    run = harness(max_num_batched_tokens=8, max_num_seqs=2, enable_prefix_caching=False)
    run.add([1] * 32, max_tokens=1, priority=1)
    run.step()
    run.add([2] * 4, max_tokens=1)

    run.step()

    assert shares(run.batches[1]) == [(2, 4), (1, 4)]
    run.run()


def test_abort_frees_the_blocks_at_once_and_the_executor_forgets(harness):
    run = harness()
    run.add([1] * 8, **LONG)
    run.add([2] * 8, **LONG)
    run.step()

    assert run.abort(1)
    run.step()

    assert run.batches[1].removed == [1]
    assert shares(run.batches[1]) == [(2, 1)]
    assert run.seqs[1].finish_reason == "abort"
    assert not run.abort(1)


def test_abort_of_a_step_on_its_way_drops_what_it_brings(harness):
    run = harness(async_scheduling=True)
    run.add([1] * 8, **LONG)
    run.launch()

    run.abort(1)

    assert run.step() == []
    assert not run.scheduler.has_work


@pytest.mark.parametrize(
    ("params", "reason", "stop_token", "length"),
    [
        ({"max_tokens": 9}, "stop", None, 3),
        ({"max_tokens": 9, "ignore_eos": True}, "length", None, 9),
        ({"max_tokens": 3}, "stop", None, 3),
        ({"max_tokens": 9, "stop_token_ids": (5,)}, "stop", 5, 2),
        ({"max_tokens": 9, "min_tokens": 3, "stop_token_ids": (5,)}, "stop", None, 3),
        ({"max_tokens": 9, "min_tokens": 4}, "length", None, 9),
        ({"max_tokens": None, "ignore_eos": True}, "length", None, 12),
    ],
)
def test_answer_ends_where_its_parameters_say(harness, params, reason, stop_token, length):
    run = harness(max_model_len=16)
    run.add([1] * 4, **params)

    said = iter([4, 5, 7, *range(10, 30)])  # 7 ends a text
    ends = []
    while run.scheduler.has_work:
        batch = run.scheduler.next_batch()
        output = StepOutput(batch.step, {1: Sampled([next(said)])})
        ends += run.scheduler.settle(batch, output)

    assert (ends[-1].finish_reason, ends[-1].stop_token) == (reason, stop_token)
    assert sum(len(progress.token_ids) for progress in ends) == length


def test_next_step_does_not_wait_for_the_token_on_its_way(harness):
    run = harness(async_scheduling=True)
    run.add([1] * 4, max_tokens=3, ignore_eos=True)

    run.launch()

    first, second = (batch.seqs[0] for batch in run.batches)
    assert (first.tokens, first.from_last, first.sample) == ([1] * 4, False, True)
    assert (second.start, second.tokens, second.from_last) == (4, [], True)
    run.run()


def test_sequence_that_the_token_on_its_way_completes_is_not_scheduled(harness):
    run = harness(async_scheduling=True)
    run.add([1] * 4, max_tokens=2, ignore_eos=True)

    run.run()

    assert len(run.batches) == 2


def test_step_behind_the_end_of_a_text_is_discarded(harness, naive):
    prompts = ([first, 1, 1] for first in range(40))
    endings = ((prompt, naive(prompt, 0, SamplingParams(), 12)) for prompt in prompts)
    prompt, (tokens, _) = next(e for e in endings if e[1][1] == "stop" and len(e[1][0]) > 1)
    run = harness(async_scheduling=True)
    run.add(prompt, max_tokens=9)

    run.run()

    assert run.streams[1] == tokens
    assert len(run.batches) == len(tokens) + 1  # one was on its way when the end came


def test_block_is_found_only_when_its_step_is_settled(harness):
    run = harness(async_scheduling=True, continuous_batching=True)
    run.add(list(range(8)), **LONG)
    run.launch()
    before = run.pool.cached_hashes

    run.step()

    assert before == []
    assert len(run.pool.cached_hashes) == 2
    run.run()


def test_preempted_sequence_waits_for_its_token_on_the_way(harness):
    run = harness(num_blocks=6, max_model_len=24, async_scheduling=True)
    run.add([1] * 8, max_tokens=16, ignore_eos=True)
    run.add([2] * 7, max_tokens=16, ignore_eos=True)

    run.run()

    assert run.seqs[2].num_preemptions > 0
    assert run.streams[2] == run.expected(run.seqs[2])[0]


def test_failed_sequence_ends_alone(harness):
    run = harness()
    run.add([1] * 8, **LONG)
    run.add([2] * 8, **LONG)
    run.step()
    run.device.to_fail.add(0)

    run.run()

    assert (run.ends[1].finish_reason, run.ends[1].error) == ("error", "made to fail")
    assert run.streams[2] == run.expected(run.seqs[2])[0]


def test_right_drafts_are_taken_and_wrong_ones_rolled_back(harness):
    run = harness(speculative_tokens=3)
    run.add([1] * 5, max_tokens=20, ignore_eos=True)

    run.run()

    assert run.streams[1] == run.expected(run.seqs[1])[0]
    assert len(run.batches) < 20
    drafted = [batch.seqs[0].num_drafts for batch in run.batches]
    assert max(drafted) == 3
    assert drafted[0] == 0  # a prompt has none


def test_drafts_never_reach_past_the_last_token(harness):
    run = harness(speculative_tokens=3, max_model_len=8, num_blocks=2)
    run.add([1] * 5, max_tokens=None, ignore_eos=True)

    run.run()

    for batch in run.batches:
        assert batch.seqs[0].start + batch.seqs[0].num_tokens < 8


def test_drafts_take_no_blocks_from_others(harness):
    run = harness(speculative_tokens=3, num_blocks=4, max_model_len=16)
    run.add([1] * 4, max_tokens=4, ignore_eos=True)
    run.add([2] * 4, max_tokens=4, ignore_eos=True)

    run.run()

    assert run.scheduler.stats().num_preemptions == 0


def test_drafts_and_async_scheduling_exclude_each_other():
    config = EngineConfig(speculative_tokens=2, async_scheduling=True)

    with pytest.raises(ConfigError, match="async_scheduling to false"):
        SchedulerConfig.of(config, 64, ())


def test_pool_too_small_for_one_sequence_names_the_number_needed():
    with pytest.raises(ConfigError, match="num_kv_blocks = 3.*needs 4.*max_model_len to 48"):
        check_capacity(3, 16, 64)

    check_capacity(4, 16, 64)


def test_without_continuous_batching_nobody_joins_a_batch_that_runs(harness):
    run = harness(continuous_batching=False, max_num_batched_tokens=8, max_num_seqs=3)
    for token in range(1, 4):
        run.add([token] * 6, max_tokens=token, ignore_eos=True)
    run.step()
    run.step()
    run.step()
    run.add([4] * 2, max_tokens=1)

    run.run()

    by_step = [{seq_id for seq_id, _ in shares(batch)} for batch in run.batches]
    assert by_step[0] == {1, 2}  # it fills up over three steps
    assert 3 in by_step[2]
    assert by_step[-1] == {4}
    assert all(4 not in ids for ids in by_step[:-1])


def test_preallocated_sequence_holds_the_longest_table_from_the_start(harness):
    run = harness(preallocate_kv=True, num_blocks=12, max_model_len=20)
    for token in range(3):
        run.add([token] * 4, **LONG)

    run.step()

    assert [len(run.seqs[i].block_table) for i in (1, 2, 3)] == [5, 5, 0]
    run.run()


def test_stats_count_what_is_there(harness):
    run = harness(num_blocks=20, max_num_seqs=1)
    run.add([1] * 8, **LONG)
    run.add([2] * 8, **LONG)
    run.step()

    stats = run.scheduler.stats()

    assert (stats.num_running, stats.num_waiting) == (1, 1)
    assert (stats.num_blocks, stats.num_blocks_used, stats.num_blocks_cached) == (20, 2, 0)
    run.run()
    assert run.scheduler.stats().num_blocks_used == 0
    assert run.scheduler.stats().num_blocks_cached > 0
