"""A worker on two hosts: what its first host is asked to load and to save happens on both."""

import time
from dataclasses import replace

import numpy as np
import pytest

from stafette.kvtransfer.connectors.connector import ALL_LAYERS, KvShare, Save
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.messages import MAX_PIECE_BLOCKS, Give, Take
from stafette.kvtransfer.connectors.spread.connector import SpreadConnector
from stafette.kvtransfer.connectors.spread.member import SpreadMember
from stafette.kvtransfer.connectors.spread.messages import PREFIX, Blocks, Word, read
from stafette.kvtransfer.errors import MalformedMessage

PATIENCE_S = 20.0


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


class Wide:
    """A worker with half of the heads on each of two hosts."""

    def __init__(self, make_agent, name, layout, num_blocks=32) -> None:
        halves = [replace(layout, num_heads=1, first_head=n) for n in (0, 1)]
        self.pools = [np.zeros((num_blocks, each.block_bytes), np.uint8) for each in halves]
        shares = [KvShare(*pair) for pair in zip(self.pools, halves, strict=True)]
        self.agent, self.far = make_agent(name), make_agent(f"{name}.1")
        head = self.far.add_peer(self.agent.metadata())
        self.member = SpreadMember(self.far, P2pConfig(rank=1, num_ranks=2), head, shares[1:])
        told = self.far.metadata()
        self.connector = SpreadConnector(self.agent, P2pConfig(), {self.agent.add_peer(told): told})
        self.connector.register(shares[:1])
        self.released: list[tuple[int, ...]] = []

    @property
    def names(self) -> tuple[str, ...]:
        return (self.agent.config.name, *self.connector.members)

    def save(self, request, first, blocks) -> None:
        hashes = request.hashes[first : first + len(blocks)]
        note = lambda: self.released.append(tuple(blocks))  # noqa: E731
        save = Save("r1", first, bytes(16), hashes, tuple(blocks), note, params=request.params)
        self.connector.save_layer(ALL_LAYERS, save)

    def heads(self, blocks) -> np.ndarray:
        """Return blocks, put together from both hosts: [blocks, layers, KV, heads, rest]."""
        shape = (len(blocks), 2, 2, 1, -1)
        return np.concatenate([pool[blocks].reshape(shape) for pool in self.pools], axis=3)

    def close(self) -> None:
        self.connector.close()
        self.member.close()


@pytest.fixture
def make_wide(make_agent, layout):
    made = []

    def make(name, **options):
        made.append(Wide(make_agent, name, layout, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def introduce(one, other) -> None:
    for us, them in ((one, other), (other, one)):
        agents = [them.agent, them.far] if isinstance(them, Wide) else [them.agent]
        for agent in agents:
            us.connector.add_peer(agent.metadata())


def names(worker) -> tuple[str, ...]:
    return worker.names if isinstance(worker, Wide) else (worker.agent.config.name,)


def content(worker, blocks) -> np.ndarray:
    if isinstance(worker, Wide):
        return worker.heads(blocks)
    return worker.pools[0][blocks].reshape(len(blocks), 2, 2, 2, -1)


def fill(worker) -> None:
    random = np.random.default_rng(1)
    for pool in worker.pools:
        pool[:] = random.integers(0, 256, pool.shape, np.uint8)


@pytest.fixture(params=["wide to wide", "wide to narrow", "narrow to wide"])
def two(request, make_wide, make_worker):
    kinds = {"wide": make_wide, "narrow": make_worker}
    owner, reader = (
        kinds[kind](name)
        for kind, name in zip(request.param.split(" to "), ("owner", "reader"), strict=True)
    )
    fill(owner)
    introduce(owner, reader)
    return owner, reader


def living(worker) -> int:
    agents = [worker.agent, worker.far] if isinstance(worker, Wide) else [worker.agent]
    return sum(agent.stats().leases.living for agent in agents)


def test_blocks_come_from_all_hosts_to_all_hosts(two, request_of):
    owner, reader = two
    given = request_of(5, Give("h1", names(reader)).params())
    taken = request_of(5, Take("h1", names(owner)).params())

    assert reader.connector.matched_tokens(taken, 0) == 20
    load = reader.connector.start_load(reader.connector.begin(taken, 0, [10, 11, 12, 13, 14]))
    owner.save(given, 0, [7, 3])
    owner.save(given, 2, [9, 1, 4])
    owner.connector.finish(given)

    assert load.wait_settled(PATIENCE_S)
    assert load.error is None
    wanted = content(owner, [7, 3, 9, 1, 4])
    assert np.array_equal(content(reader, [10, 11, 12, 13, 14]), wanted)
    until(lambda: sorted(owner.released) == [(7, 3), (9, 1, 4)])
    until(lambda: not living(owner))


def test_what_an_owner_does_not_pass_on_is_missing_on_all_hosts(two, request_of):
    owner, reader = two
    given = request_of(5, Give("h1", names(reader)).params())
    taken = request_of(5, Take("h1", names(owner)).params())

    load = reader.connector.start_load(reader.connector.begin(taken, 0, [10, 11, 12, 13, 14]))
    owner.save(given, 0, [7, 3])
    owner.connector.finish(given, "no more")

    assert load.wait_settled(PATIENCE_S)
    assert load.num_arrived == 2
    assert "no more" in str(load.error)


def test_an_owner_that_has_nothing_to_load_itself_passes_on_all_the_same(two, request_of):
    owner, reader = two
    given = request_of(2, Give("h1", names(reader)).params())
    taken = request_of(2, Take("h1", names(owner)).params())
    load = reader.connector.start_load(reader.connector.begin(taken, 0, [10, 11]))

    owner.connector.start_load(owner.connector.begin(given, 0, []))
    owner.save(given, 0, [7, 3])
    owner.connector.finish(given)

    assert load.wait_settled(PATIENCE_S)
    assert load.error is None


def test_a_hand_off_that_is_not_wanted_is_refused_on_all_hosts(two, request_of):
    owner, reader = two
    taken = request_of(2, Take("h1", names(owner)).params())

    assert reader.connector.start_load(reader.connector.begin(taken, 0, [])).wait(PATIENCE_S)
    owner.save(request_of(2, Give("h1", names(reader)).params()), 0, [7, 3])

    until(lambda: owner.released == [(7, 3)])


def test_a_load_that_is_cancelled_settles_when_no_host_writes_any_more(two, request_of):
    owner, reader = two
    taken = request_of(5, Take("h1", names(owner)).params())

    load = reader.connector.start_load(reader.connector.begin(taken, 0, [10, 11, 12, 13, 14]))
    load.cancel()

    assert load.wait_settled(PATIENCE_S)
    assert load.num_arrived == 0
    reader.connector.finish(taken)


def test_a_far_host_that_is_gone_settles_what_was_awaited_of_it(make_wide, make_worker, request_of):
    owner, reader = make_worker("owner"), make_wide("reader")
    introduce(owner, reader)
    taken = request_of(2, Take("h1", names(owner)).params())
    load = reader.connector.start_load(reader.connector.begin(taken, 0, [10, 11]))

    reader.connector._lost("reader.1", True)
    owner.save(request_of(2, Give("h1", ("reader",)).params()), 0, [1, 2])

    assert load.wait_settled(PATIENCE_S)
    assert load.num_arrived == 0
    assert "that host is gone" in str(load.error)


def test_more_blocks_than_a_notification_holds_go_in_several():
    count = 2 * MAX_PIECE_BLOCKS + 3
    hashes = tuple(number.to_bytes(16, "big") for number in range(count))
    whole = Blocks("load", 4, 9, hashes, tuple(range(count)), {"p2p": {"take": {"id": "h"}}})

    pieces = [read(piece.pack()) for piece in whole.pieces()]

    first, second, third = pieces
    assert [piece.more for piece in pieces] == [True, True, False]
    assert third.first == 9 + 2 * MAX_PIECE_BLOCKS
    assert first.and_then(second).and_then(third) == whole


@pytest.mark.parametrize(
    "payload",
    [
        PREFIX,
        PREFIX + b"\xc1",
        PREFIX + b"\x90",
        Word("loaded", 1).pack()[:-1],
        Blocks("save", 1, 0, (bytes(16),) * 2, (1,), {}).pack(),
        Blocks("steal", 1, 0, (bytes(16),), (1,), {}).pack(),
    ],
)
def test_what_is_no_message_is_malformed(payload):
    with pytest.raises(MalformedMessage):
        read(payload)


def test_only_the_first_host_is_obeyed(make_wide, make_agent, request_of):
    wide, stranger = make_wide("wide"), make_agent("stranger")
    stranger.add_peer(wide.far.metadata())
    wide.far.add_peer(stranger.metadata())
    give = {"p2p": {"give": {"id": "h", "readers": ["stranger"]}}}

    stranger.notify("wide.1", Blocks("save", 1, 0, (bytes(16),), (1,), give).pack())
    stranger.notify("wide.1", b"the next one")

    assert wide.far.notifications(PATIENCE_S)
    wide.member._orders.submit(lambda: None).result(PATIENCE_S)
    assert wide.far.stats().leases.living == 0
