"""What is handed from one engine to another: which blocks, when, and what becomes of the rest."""

import time

import numpy as np

from stafette.kvtransfer.connectors.connector import ALL_LAYERS, Save
from stafette.kvtransfer.connectors.p2p.messages import Give, Take

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


def test_blocks_are_read_as_they_are_passed_on(pair, request_of, layout):
    owner, reader = pair
    given, taken = request_of(5, GIVE), request_of(5, TAKE)

    matched = reader.connector.matched_tokens(taken, 0)
    load = begin(reader, taken, [10, 11, 12, 13, 14])
    owner.save(given, 0, [7, 3])
    until(lambda: load.num_arrived == 2)
    assert not load.ended
    owner.save(given, 2, [9, 1, 4])

    assert matched == 20
    assert load.wait_settled(PATIENCE_S)
    assert load.error is None
    assert np.array_equal(reader.pools[0][10:15], owner.pools[0][[7, 3, 9, 1, 4]])
    assert not reader.pools[0][:10].any()
    assert not reader.pools[0][15:].any()
    until(lambda: sorted(owner.released) == [(7, 3), (9, 1, 4)])
    assert owner.agent.stats().leases.living == 0
    assert moved(reader) == 5 * layout.block_bytes


def test_only_the_blocks_that_the_reader_lacks_are_read(pair, request_of, layout):
    owner, reader = pair
    given, taken = request_of(6, GIVE), request_of(6, TAKE)

    assert reader.connector.matched_tokens(taken, 12) == 12
    load = begin(reader, taken, [20, 21, 22], first=3)
    owner.save(given, 0, [0, 1])  # all of it is held
    owner.save(given, 2, [2, 3, 4, 5])  # one of it is held

    assert load.wait_settled(PATIENCE_S)
    assert load.error is None
    assert np.array_equal(reader.pools[0][20:23], owner.pools[0][3:6])
    assert moved(reader) == 3 * layout.block_bytes
    until(lambda: sorted(owner.released) == [(0, 1), (2, 3, 4, 5)])


def test_what_is_passed_on_before_the_reader_is_ready_waits_for_it(pair, request_of):
    owner, reader = pair

    owner.save(request_of(3, GIVE), 0, [0, 1, 2])
    until(lambda: owner.agent.stats().notified == 1)
    load = begin(reader, request_of(3, TAKE), [5, 6, 7])

    assert load.wait(PATIENCE_S)
    assert load.error is None


def test_what_nobody_wants_in_time_is_given_back(make_worker, request_of):
    owner, reader = make_worker("owner"), make_worker("reader", early_s=0.05)
    owner.agent.add_peer(reader.agent.metadata())

    owner.save(request_of(3, GIVE), 0, [0, 1, 2])

    until(lambda: owner.released == [(0, 1, 2)])
    assert {reason.name for reason in owner.agent.stats().leases.ended} == {"REJECTED"}


def test_news_come_along_with_the_request_where_the_owner_knew_no_reader(pair, request_of):
    owner, reader = pair
    given = request_of(4, Give("h2").params())
    owner.save(given, 0, [4, 5])
    owner.save(given, 2, [6])  # the fourth block is never computed

    finish = owner.connector.finish(given)
    taken = request_of(4, finish.params)
    assert reader.connector.matched_tokens(taken, 0) == 12
    load = begin(reader, taken, [0, 1, 2])

    assert finish.keep
    assert load.wait(PATIENCE_S)
    assert load.error is None
    assert np.array_equal(reader.pools[0][:3], owner.pools[0][[4, 5, 6]])
    until(lambda: len(owner.released) == 2)
    assert not owner.connector.finish(given).keep


def test_every_reader_gets_a_lease_of_its_own_and_blocks_are_released_after_the_last(
    make_worker, request_of
):
    owner, first, second = make_worker("owner"), make_worker("reader"), make_worker("second")
    owner.fill(1)
    for reader in (first, second):
        owner.agent.add_peer(reader.agent.metadata())
    given = request_of(2, Give("h1", ("reader", "second")).params())

    load = begin(first, request_of(2, TAKE), [0, 1])
    owner.save(given, 0, [8, 9])
    assert load.wait_settled(PATIENCE_S)
    until(lambda: owner.agent.stats().leases.living == 1)
    assert owner.released == []
    assert begin(second, request_of(2, TAKE), [0, 1]).wait(PATIENCE_S)

    until(lambda: owner.released == [(8, 9)])
    assert np.array_equal(second.pools[0][:2], owner.pools[0][8:10])


def test_thousands_of_blocks_are_passed_on_in_several_pieces(make_worker, request_of):
    owner = make_worker("owner", num_blocks=3000)
    reader = make_worker("reader", num_blocks=3000)
    owner.fill(2)
    owner.agent.add_peer(reader.agent.metadata())
    hashes = tuple(i.to_bytes(16, "little") for i in range(1, 2501))
    given = type(request_of(1))("r1", (), hashes, 4, params=GIVE)
    taken = type(request_of(1))("r1", (), hashes, 4, params=TAKE)

    load = begin(reader, taken, range(2500))
    owner.save(given, 0, range(2999, 499, -1))

    assert load.wait(PATIENCE_S)
    assert load.error is None
    assert np.array_equal(reader.pools[0][:2500], owner.pools[0][2999:499:-1])
    until(lambda: len(owner.released) == 1)


def test_an_engine_that_saves_layer_by_layer_passes_blocks_on_with_the_last(pair, request_of):
    owner, reader = pair
    given, released = request_of(2, GIVE), []
    save = Save("r1", 0, bytes(16), given.hashes, (10, 11), lambda: released.append(1), params=GIVE)
    load = begin(reader, request_of(2, TAKE), [0, 1])

    owner.connector.save_layer(0, save)
    assert not load.wait(0.1)
    owner.connector.save_layer(1, save)

    assert reader.connector.wait_layer(load, 1, PATIENCE_S)
    assert load.error is None
    until(lambda: released == [1])


def test_a_save_that_is_for_nobody_is_released_at_once(pair, request_of):
    owner, _ = pair

    owner.save(request_of(2), 0, [0, 1])

    assert owner.released == [(0, 1)]


def test_a_save_of_all_layers_needs_no_layer(pair):
    assert pair[0].connector.completes(ALL_LAYERS)
    assert not pair[0].connector.completes(0)
