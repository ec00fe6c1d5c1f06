"""KV from one mock worker to another on a virtual clock: what it takes, and what happens then."""

import pytest

from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.messages import Give, Take
from stafette.workers.errors import RequestError

BLOCK = 16
GIVE = Give("hand-off", ("d",)).params()
TAKE = Take("hand-off", ("p",)).params()


def hand_over(stage, prefill, decode, prompt=160, **params):
    """Begin both sides at once, as a dispatcher does; return what the prefill side told."""
    told = []
    request = stage.request("d", prompt=prompt, **params)
    decode.generate(request, TAKE)
    prefill.prefill(stage.request("p", prompt=prompt, max_tokens=1), GIVE, told.append)
    return told


def settled(*workers) -> None:
    for worker in workers:
        assert worker.pool.num_held == 0
        assert worker.exports.counters.num_pinned == 0
        assert worker.connector.counters.leases == 0


def test_blocks_arrive_after_the_time_that_their_bytes_take_and_only_the_rest_is_computed(stage):
    prefill, decode = stage.worker("p"), stage.worker("d")

    told = hand_over(stage, prefill, decode, max_tokens=2)
    stage.time.run()

    # 160 tokens: 2.6 s to compute; 9 blocks of 16 MB at 1 GB/s; then a step for the 16 left.
    assert stage.times("d") == pytest.approx([2.6 + 0.144 + 1.16, 2.6 + 0.144 + 2.16])
    assert [exported.num_tokens for exported in told] == [9 * BLOCK]
    assert stage.deltas[-1][1].num_cached_tokens == 9 * BLOCK
    assert decode.imports.counters.pulled_tokens == 9 * BLOCK
    assert decode.connector.counters.nbytes == 144_000_000
    settled(prefill, decode)


def test_a_long_prompt_is_passed_on_chunk_by_chunk_while_the_next_one_computes(stage):
    prefill = stage.worker("p", max_num_batched_tokens=256)
    decode = stage.worker("d", max_num_batched_tokens=256)

    hand_over(stage, prefill, decode, prompt=1_024, max_tokens=1)
    stage.time.run()

    # Four chunks of 3.56 s; what is still to arrive after them is the last chunk's 15 blocks.
    assert stage.times("d") == pytest.approx([4 * 3.56 + 0.240 + 1.16])
    settled(prefill, decode)


def test_the_tokens_are_those_of_one_worker_alone(stage):
    prefill, decode, alone = (stage.worker(name) for name in ("p", "d", "alone"))
    alone.generate(stage.request("one", prompt=160, max_tokens=12))

    hand_over(stage, prefill, decode, max_tokens=12)
    stage.time.run()

    assert stage.tokens("d") == stage.tokens("one")


def test_what_the_decode_worker_has_already_does_not_travel(stage):
    prefill, decode = stage.worker("p"), stage.worker("d")
    decode.generate(stage.request("before", prompt=80, max_tokens=1))
    stage.time.run()

    hand_over(stage, prefill, decode, max_tokens=1)
    stage.time.run()

    assert decode.connector.counters.nbytes == (9 - 5) * BLOCK * 1_000_000
    settled(prefill, decode)


def test_two_hand_overs_share_the_way_into_a_worker(stage):
    sources = [stage.worker(name) for name in ("p0", "p1")]
    decode = stage.worker("d")
    for number, source in enumerate(sources):
        prompt = [number + 3] * 160
        give = Give(str(number), ("d",)).params()
        decode.generate(
            stage.request(f"d{number}", prompt=prompt, max_tokens=1),
            Take(str(number), (f"p{number}",)).params(),
        )
        request = stage.request(f"p{number}", prompt=prompt, max_tokens=1)
        source.prefill(request, give, lambda exported: None)
    stage.time.run()

    assert stage.times("d0") == pytest.approx([2.6 + 0.144 + 1.16])
    assert stage.times("d1") == pytest.approx([2.6 + 0.144 + 2 * 1.16])  # 0.288, then its turn


def test_an_offer_passes_on_what_is_cached_and_the_rest_is_computed(stage):
    source, computing = stage.worker("p"), stage.worker("d")
    source.generate(stage.request("before", prompt=80, max_tokens=1))
    stage.time.run()
    computing.generate(stage.request("d", max_tokens=1, prompt=160), TAKE)

    exported = source.offer(stage.request("p", prompt=160, max_tokens=1), GIVE)
    stage.time.run()

    assert exported.num_tokens == 5 * BLOCK
    assert stage.deltas[-1][1].num_cached_tokens == 5 * BLOCK
    settled(source, computing)


def test_the_prompt_is_computed_where_its_prefill_worker_is_lost(stage):
    prefill = stage.worker("p", max_num_batched_tokens=256)
    decode = stage.worker("d", max_num_batched_tokens=256)
    hand_over(stage, prefill, decode, prompt=1_024, max_tokens=3)
    stage.time.run(until=2 * 3.56 + 0.5)

    stage.cluster.kill("p")
    stage.time.run()

    assert decode.imports.counters.shortfalls == {"PeerLost": 1}
    assert decode.imports.counters.pulled_tokens == 512
    assert stage.end("d") == "length"
    settled(decode)


def test_news_that_come_before_the_reader_asks_are_kept(stage):
    prefill, decode = stage.worker("p"), stage.worker("d")
    prefill.prefill(stage.request("p", prompt=160, max_tokens=1), GIVE, lambda exported: None)
    stage.time.run(until=5.0)
    assert prefill.exports.counters.num_pinned == 9

    decode.generate(stage.request("d", prompt=160, max_tokens=1), TAKE)
    stage.time.run()

    assert stage.times("d") == pytest.approx([5.0 + 0.144 + 1.16])
    settled(prefill, decode)


def test_blocks_that_nobody_reads_are_let_go_when_their_lease_is_over(stage):
    prefill = stage.worker("p", p2p=P2pConfig(lease_ttl_s=10.0))
    stage.worker("d")
    stage.cluster.workers["d"].hear = lambda peer, news: None  # as if it hung
    prefill.prefill(stage.request("p", prompt=160, max_tokens=1), GIVE, lambda exported: None)

    stage.time.run(until=12.5)
    assert prefill.exports.counters.num_pinned == 9
    stage.time.run(until=12.7)

    settled(prefill)


def test_a_lease_that_keeps_all_else_from_running_is_taken_back_after_its_grace(stage):
    prefill = stage.worker("p", num_kv_blocks=12, max_model_len=192)
    stage.worker("d")
    stage.cluster.workers["d"].hear = lambda peer, news: None  # as if it hung
    prefill.prefill(stage.request("p", prompt=160, max_tokens=1), GIVE, lambda exported: None)
    stage.time.run(until=3.0)

    prefill.generate(stage.request("next", prompt=[9] * 160, max_tokens=1))
    stage.time.run()

    assert 2.6 + 5.0 < stage.times("next")[0] - 2.6 < 2.6 + 5.1  # P2pConfig.grace_s
    settled(prefill)


def test_a_load_of_which_nothing_comes_ends_and_the_prompt_is_computed(stage):
    decode = stage.worker("d", p2p=P2pConfig(stall_timeout_s=20.0))
    stage.worker("p")
    decode.generate(stage.request("d", prompt=160, max_tokens=1), TAKE)

    stage.time.run()

    assert stage.times("d") == pytest.approx([20.0 + 2.6])
    assert decode.imports.counters.shortfalls == {"TransferTimedOut": 1}


@pytest.mark.parametrize("before", [True, False])
def test_who_waits_for_a_hand_over_that_is_given_up_computes_the_prompt(stage, before):
    decode = stage.worker("d")
    stage.worker("p")
    if before:
        decode.give_up("hand-off")
    decode.generate(stage.request("d", prompt=160, max_tokens=1), TAKE)
    stage.time.run(until=1.0)

    if not before:
        decode.give_up("hand-off")
    stage.time.run()

    assert stage.times("d") == pytest.approx([2.6 if before else 3.6])


@pytest.mark.parametrize("until", [1.0, 2.65, 3.0, 4.5])
def test_an_abort_at_any_moment_frees_both_sides(stage, until):
    prefill, decode = stage.worker("p"), stage.worker("d")
    hand_over(stage, prefill, decode, max_tokens=5)
    stage.time.run(until=until)

    assert decode.abort("d")
    prefill.abort("p")
    stage.time.run()

    settled(prefill, decode)


def test_closing_gives_every_block_back(stage):
    prefill, decode = stage.worker("p"), stage.worker("d")
    told = hand_over(stage, prefill, decode, max_tokens=5)
    stage.time.run(until=2.65)

    for worker in (prefill, decode):
        worker.close()

    settled(prefill, decode)
    assert len(told) == 1


def test_parameters_that_are_none_are_refused(stage):
    worker = stage.worker("d")

    with pytest.raises(RequestError, match="readers"):
        worker.generate(stage.request("d"), Give("hand-off").params())
    with pytest.raises(RequestError, match="p2p"):
        worker.generate(stage.request("d"), {"p2p": {"take": 3}})

    assert not worker.has_work
