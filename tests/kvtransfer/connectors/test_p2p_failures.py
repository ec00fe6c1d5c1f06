"""What becomes of a hand-over when a lease ends, a peer dies, time runs out, or somebody lies."""

import threading
import time

import numpy as np

from stafette.kvtransfer.connectors.p2p.messages import Give, Take
from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    Incompatible,
    LeaseEnded,
    PeerLost,
    TransferCancelled,
    TransferTimedOut,
)
from stafette.kvtransfer.layout import BlockLayout
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.leases.held import EndReason

PATIENCE_S = 20.0
GIVE = Give("h1", ("reader",)).params()
TAKE = Take("h1", ("owner",)).params()


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def begin(reader, request, blocks, first=0):
    """Start the load of a request's blocks from `first` on."""
    return reader.connector.start_load(reader.connector.begin(request, first, blocks))


def moved(worker) -> int:
    counters = worker.agent.stats().transfers.get("shm")
    return counters.nbytes if counters else 0


def test_an_owner_that_ends_early_leaves_what_has_come(pair, request_of):
    owner, reader = pair
    given = request_of(5, GIVE)
    load = begin(reader, request_of(5, TAKE), [0, 1, 2, 3, 4])

    owner.save(given, 0, [10, 11])
    owner.connector.finish(given, "aborted")

    assert load.wait_settled(PATIENCE_S)
    assert load.num_arrived == 2
    assert load.failed_blocks == (2, 3, 4)
    assert "aborted" in str(load.error)


def test_a_lease_that_ends_in_the_middle_ends_the_load_and_keeps_what_was_there(pair, request_of):
    owner, reader = pair
    given = request_of(4, GIVE)
    load = begin(reader, request_of(4, TAKE), [0, 1, 2, 3])
    owner.save(given, 0, [10, 11])
    until(lambda: load.num_arrived == 2)
    expired = threading.Event()

    def expire(job):
        owner.agent._leases.end_all(EndReason.EXPIRED, lambda lease: True)
        expired.set()

    reader.transport.before = expire
    owner.save(given, 2, [12, 13])

    assert load.wait_settled(PATIENCE_S)
    assert expired.is_set()
    assert isinstance(load.error, LeaseEnded)
    assert load.num_arrived == 2
    assert not reader.pools[0][2:4].any()
    until(lambda: sorted(owner.released) == [(10, 11), (12, 13)])


def test_a_lease_that_nobody_takes_up_runs_out_and_releases_the_blocks(make_worker, request_of):
    lease = LeaseConfig(ttl_s=0.2)
    owner = make_worker("owner", agent={"lease": lease})
    deaf = make_worker("reader", early_s=60.0)
    owner.agent.add_peer(deaf.agent.metadata())

    owner.save(request_of(2, GIVE), 0, [0, 1])

    until(lambda: owner.released == [(0, 1)])
    assert [reason.name for reason in owner.agent.stats().leases.ended] == ["EXPIRED"]


def test_a_reader_that_cannot_be_told_costs_no_block(pair, request_of):
    owner, _ = pair

    owner.save(request_of(2, Give("h1", ("nobody",)).params()), 0, [0, 1])

    assert owner.released == [(0, 1)]


def test_when_the_owner_dies_between_two_pieces_the_load_ends_at_once(pair, request_of):
    owner, reader = pair
    load = begin(reader, request_of(4, TAKE), [0, 1, 2, 3])
    owner.save(request_of(4, GIVE), 0, [10, 11])
    until(lambda: load.num_arrived == 2)

    owner.agent.close()

    assert load.wait_settled(PATIENCE_S)
    assert isinstance(load.error, PeerLost)
    assert load.num_arrived == 2


def test_an_owner_that_is_gone_before_the_first_piece_is_noticed_at_once(pair, request_of):
    owner, reader = pair
    owner.agent.close()

    load = begin(reader, request_of(4, TAKE), [0, 1, 2, 3])

    assert load.wait(PATIENCE_S)
    assert isinstance(load.error, PeerLost)


def test_a_newer_life_of_the_owner_ends_what_was_awaited_from_the_older(
    pair, make_worker, request_of
):
    _, reader = pair
    load = begin(reader, request_of(4, TAKE), [0, 1, 2, 3])

    reader.agent.add_peer(make_worker("owner").agent.metadata())

    assert load.wait(PATIENCE_S)
    assert isinstance(load.error, PeerLost)


def test_a_load_of_which_nothing_comes_ends_by_itself(make_worker, request_of):
    owner, reader = make_worker("owner"), make_worker("reader", stall_timeout_s=0.2)
    reader.agent.add_peer(owner.agent.metadata())

    load = begin(reader, request_of(2, TAKE), [0, 1])

    assert load.wait_settled(PATIENCE_S)
    assert isinstance(load.error, TransferTimedOut)
    assert "0.2 s" in str(load.error)


def test_a_load_ends_by_its_own_deadline_although_something_comes_all_the_time(
    make_worker, request_of
):
    owner, reader = make_worker("owner"), make_worker("reader", load_timeout_s=2.0)
    owner.agent.add_peer(reader.agent.metadata())
    reader.agent.add_peer(owner.agent.metadata())
    given = request_of(30, GIVE)

    load = begin(reader, request_of(30, TAKE), range(30))
    for block in range(30):
        if load.ended:
            break
        owner.save(given, block, [block])
        load.wait(0.1)

    assert load.wait(PATIENCE_S)
    assert "2 s" in str(load.error)
    assert 0 < load.num_arrived < 30


def test_a_cancelled_load_is_settled_only_when_its_reads_have_stopped(pair, request_of):
    owner, reader = pair
    reading, go_on = threading.Event(), threading.Event()

    def hold(job):
        reading.set()
        go_on.wait(PATIENCE_S)

    reader.transport.before = hold
    load = begin(reader, request_of(2, TAKE), [0, 1])
    owner.save(request_of(2, GIVE), 0, [10, 11])
    assert reading.wait(PATIENCE_S)

    load.cancel()

    assert isinstance(load.error, TransferCancelled)
    assert load.num_arrived == 0
    assert not load.wait_settled(0.1)
    go_on.set()
    assert load.wait_settled(PATIENCE_S)
    until(lambda: owner.released == [(10, 11)])


def test_what_comes_for_a_request_that_has_finished_is_given_back(pair, request_of):
    owner, reader = pair
    taken = request_of(2, TAKE)
    load = begin(reader, taken, [0, 1])

    reader.connector.finish(taken)
    owner.save(request_of(2, GIVE), 0, [10, 11])

    assert load.settled
    until(lambda: owner.released == [(10, 11)])
    assert moved(reader) == 0


def test_bytes_that_changed_on_the_way_are_read_once_more(pair, request_of):
    owner, reader = pair
    errors = [ChecksumMismatch("owner", "kv0")]
    reader.transport.before = lambda job: errors.pop() if errors else None

    load = begin(reader, request_of(2, TAKE), [0, 1])
    owner.save(request_of(2, GIVE), 0, [10, 11])

    assert load.wait(PATIENCE_S)
    assert load.error is None
    assert np.array_equal(reader.pools[0][:2], owner.pools[0][10:12])


def test_bytes_that_change_every_time_end_the_load(pair, request_of):
    owner, reader = pair
    reader.transport.before = lambda job: ChecksumMismatch("owner", "kv0")

    load = begin(reader, request_of(2, TAKE), [0, 1])
    owner.save(request_of(2, GIVE), 0, [10, 11])

    assert load.wait_settled(PATIENCE_S)
    assert isinstance(load.error, ChecksumMismatch)


def test_blocks_of_another_prompt_are_not_read(pair, request_of):
    owner, reader = pair
    given, taken = request_of(3, GIVE), request_of(3, TAKE)
    other = type(given)("r1", given.token_ids, given.hashes[::-1], 4, params=GIVE)

    load = begin(reader, taken, [0, 1, 2])
    owner.save(other, 0, [10, 11, 12])

    assert load.wait(PATIENCE_S)
    assert isinstance(load.error, Incompatible)
    assert moved(reader) == 0
    until(lambda: len(owner.released) == 1)


def test_blocks_of_another_size_are_not_read(make_worker, request_of):
    other = BlockLayout(num_layers=2, num_heads=2, block_size=8, head_dim=2, dtype="float16")
    owner, reader = make_worker("owner", layouts=(other,)), make_worker("reader")
    owner.agent.add_peer(reader.agent.metadata())

    load = begin(reader, request_of(2, TAKE), [0, 1])
    owner.save(request_of(2, GIVE), 0, [10, 11])

    assert load.wait(PATIENCE_S)
    assert isinstance(load.error, Incompatible)
    until(lambda: len(owner.released) == 1)


def test_news_from_somebody_else_are_not_believed(pair, make_worker, request_of):
    owner, reader = pair
    liar = make_worker("liar")
    liar.agent.add_peer(reader.agent.metadata())
    load = begin(reader, request_of(2, TAKE), [0, 1])

    liar.save(request_of(2, GIVE), 0, [3, 4])
    until(lambda: liar.agent.stats().notified == 1)
    owner.save(request_of(2, GIVE), 0, [10, 11])

    assert load.wait(PATIENCE_S)
    assert np.array_equal(reader.pools[0][:2], owner.pools[0][10:12])


def test_closing_gives_back_everything_on_both_sides(pair, request_of):
    owner, reader = pair
    before = threading.active_count()
    load = begin(reader, request_of(4, TAKE), [0, 1, 2, 3])
    owner.save(request_of(4, Give("h3").params()), 0, [10, 11])

    for worker in (reader, owner, reader, owner):
        worker.connector.close()

    assert load.settled
    assert owner.released == [(10, 11)]
    assert threading.active_count() <= before
    owner.agent.register("kv0", owner.pools[0])  # the name is free again


def test_behind_blocks_that_could_not_be_leased_nothing_is_passed_on(pair, request_of):
    owner, reader = pair
    given = request_of(6, GIVE)
    load = begin(reader, request_of(6, TAKE), range(6))
    owner.save(given, 0, [10, 11])
    until(lambda: load.num_arrived == 2)

    owner.save(given, 2, [99])  # no such block
    owner.save(given, 3, [12, 13])
    owner.connector.finish(given)

    assert load.wait_settled(PATIENCE_S)
    assert load.num_arrived == 2
    assert "0..31" in str(load.error)
    until(lambda: sorted(owner.released) == [(10, 11), (12, 13), (99,)])


def test_what_has_arrived_is_never_written_again(pair, request_of):
    """An owner may send the same blocks twice: by then they may be in use here."""
    owner, reader = pair
    given = request_of(4, GIVE)
    load = begin(reader, request_of(4, TAKE), [0, 1, 2, 3])
    owner.save(given, 0, [10, 11])
    until(lambda: load.num_arrived == 2)
    before = reader.pools[0][:2].copy()

    owner.save(given, 0, [20, 21])  # other content under the same hashes
    owner.save(given, 1, [22, 12])  # a part of it is there already
    owner.save(given, 3, [13])

    assert load.wait_settled(PATIENCE_S)
    assert load.error is None
    assert np.array_equal(reader.pools[0][:2], before)
    assert np.array_equal(reader.pools[0][2:4], owner.pools[0][12:14])
    until(lambda: len(owner.released) == 4)


def test_a_rank_that_sends_its_share_twice_gets_the_second_back(make_worker, request_of):
    owner = make_worker("owner", rank=0, num_ranks=2)
    reader = make_worker("reader")
    owner.agent.add_peer(reader.agent.metadata())
    load = begin(reader, request_of(2, TAKE), [0, 1])

    owner.save(request_of(2, GIVE), 0, [10, 11])
    owner.save(request_of(2, GIVE), 0, [10, 11])

    until(lambda: owner.released == [(10, 11)])
    load.cancel()
    until(lambda: owner.released == [(10, 11)] * 2)
