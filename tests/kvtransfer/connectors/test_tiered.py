"""Blocks that leave the pool for the tiers below come back from there, alone or beside a peer's."""

import threading

import numpy as np
import pytest

from stafette.kvtransfer.connectors import registry
from stafette.kvtransfer.connectors.connector import KvRequest, KvShare, Save
from stafette.kvtransfer.connectors.multi import MultiConnector
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.connector import P2pConnector
from stafette.kvtransfer.connectors.p2p.messages import Give, Take
from stafette.kvtransfer.connectors.tiered import TieredConfig, TieredConnector
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.event_log import CachedBlocks
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.tiers.config import HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks

PATIENCE_S = 20.0
NUM_BLOCKS = 16


def config(num_blocks: int = 64, **changes) -> TieredConfig:
    tiers = TiersConfig(host=HostConfig(num_blocks=num_blocks), save_on_close=False)
    return TieredConfig(tiers=tiers, **changes)


class Engine:
    """A pool of blocks under a connector."""

    def __init__(self, connector, layout) -> None:
        self.connector = connector
        self.memory = SharedMemory("kv", NUM_BLOCKS * layout.block_bytes)
        self.pool = self.memory.array.reshape(NUM_BLOCKS, -1)
        self.released: list[tuple[int, ...]] = []
        connector.register([KvShare(self.memory, layout)])

    def compute(self, request, first: int, blocks) -> None:
        """Fill blocks with what is told by their hashes, and save them."""
        some = request.hashes[first : first + len(blocks)]
        for block, block_hash in zip(blocks, some, strict=True):
            self.pool[block] = content(block_hash, self.pool.shape[1])
        note = lambda: self.released.append(tuple(blocks))  # noqa: E731
        parent = request.hashes[first - 1] if first else bytes(16)
        self.connector.save_layer(-1, Save("r1", first, parent, some, tuple(blocks), note))
        assert self.connector.wait_saved(PATIENCE_S)

    def load(self, request, blocks, num_held: int = 0):
        """Load what is matched beyond what is held; return the load, which is over."""
        matched = self.connector.matched_tokens(request, num_held * 4)
        order = self.connector.begin(request, num_held, blocks[: matched // 4])
        load = self.connector.start_load(order)
        assert load.wait_settled(PATIENCE_S)
        return load

    def holds(self, request, first: int, blocks) -> bool:
        some = request.hashes[first : first + len(blocks)]
        size = self.pool.shape[1]
        pairs = zip(blocks, some, strict=True)
        return all(np.array_equal(self.pool[b], content(h, size)) for b, h in pairs)


def content(block_hash: bytes, nbytes: int) -> np.ndarray:
    random = np.random.default_rng(int.from_bytes(block_hash, "little"))
    return random.integers(0, 256, nbytes, np.uint8)


@pytest.fixture
def make(layout):
    made: list[Engine] = []

    def make(connector=None, **changes) -> Engine:
        made.append(Engine(connector or TieredConnector(config(**changes)), layout))
        return made[-1]

    yield make
    for engine in made:
        engine.connector.close()


def test_blocks_come_back_to_other_places(make, request_of):
    engine, request = make(), request_of(5)
    engine.compute(request, 0, [1, 2])
    engine.compute(request, 2, [3])
    engine.pool[:] = 0

    load = engine.load(request, [10, 11, 12, 13, 14])

    assert load.error is None
    assert load.num_arrived == 3
    assert engine.holds(request, 0, [10, 11, 12])
    assert not engine.pool[13:].any()
    assert engine.released == [(1, 2), (3,)]


def test_only_what_the_pool_lacks_comes_back(make, request_of):
    engine, request = make(), request_of(5)
    engine.compute(request, 0, [1, 2, 3])

    load = engine.load(request, [10, 11], num_held=1)

    assert (load.order.first, load.num_arrived) == (1, 2)
    assert engine.holds(request, 1, [10, 11])


def test_what_would_come_later_than_it_is_computed_is_left_and_counted(make, request_of):
    engine, request = make(), request_of(3)
    engine.compute(request, 0, [4, 5, 6])
    paying = engine.connector.paying
    paying.note_step(prompt_tokens=100, seconds=0.001, waiting=0)
    paying.note_load(["host"], seconds=10.0)

    assert engine.connector.matched_tokens(request, 0) == 0
    assert engine.connector.store.stats().calls.declined == 3

    paying.note_step(prompt_tokens=1, seconds=1_000.0, waiting=0)

    assert engine.connector.matched_tokens(request, 0) == 12
    assert engine.connector.store.stats().calls.declined == 3


def test_what_is_gone_between_the_question_and_the_load_is_told(make, request_of):
    engine, request = make(), request_of(3)
    engine.compute(request, 0, [1, 2, 3])
    assert engine.connector.matched_tokens(request, 0) == 12
    order = engine.connector.begin(request, 0, [10, 11, 12])

    engine.connector.reset_cache()
    load = engine.connector.start_load(order)

    assert load.wait_settled(PATIENCE_S)
    assert load.num_arrived == 0
    assert "3 missing" in str(load.error)
    assert engine.connector.matched_tokens(request, 0) == 0


def test_a_cancelled_load_settles(make, request_of):
    engine, request = make(), request_of(3)
    engine.compute(request, 0, [1, 2, 3])

    load = engine.connector.start_load(engine.connector.begin(request, 0, [10, 11, 12]))
    load.cancel()

    assert load.wait_settled(PATIENCE_S)


def test_blocks_are_kept_until_they_are_copied(make, request_of):
    go_on = threading.Event()

    class Slow(ArrayBlocks):
        def copy_out(self, slots, pool, rows):
            assert go_on.wait(PATIENCE_S)
            super().copy_out(slots, pool, rows)

    def make_device(share):
        return Slow(share.buffer.array.reshape(NUM_BLOCKS, -1))

    engine, request = make(TieredConnector(config(), make_device=make_device)), request_of(3)
    released = []
    save = Save("r1", 0, bytes(16), request.hashes, (1, 2, 3), lambda: released.append(1))

    engine.connector.save_layer(0, save)  # not the last layer: nothing is complete
    engine.connector.save_layer(1, save)
    assert engine.connector.finish(request).keep
    assert not engine.connector.wait_saved(0.05)
    assert released == []
    go_on.set()

    assert engine.connector.wait_saved(PATIENCE_S)
    assert released == [1]
    assert not engine.connector.finish(request).keep


def test_changes_below_the_pool_are_told(layout, request_of):
    connector, told = TieredConnector(config(num_blocks=4)), CachedBlocks()
    connector.on_kv_events(told.apply)
    engine, first = Engine(connector, layout), request_of(4)
    engine.compute(first, 0, [1, 2, 3, 4])
    assert told.on("host") == set(first.hashes)

    other = KvRequest("r2", (), tuple(bytes([100 + i]) * 16 for i in range(2)), 4)
    engine.compute(other, 0, [5])

    assert len(told.on("host")) == 4
    assert other.hashes[0] in told.on("host")
    connector.close()


def test_before_the_pool_is_registered_there_is_nothing(request_of):
    connector = TieredConnector(config())

    assert connector.matched_tokens(request_of(3), 0) == 0
    connector.reset_cache()
    connector.close()


def test_a_chain_takes_from_the_host_what_is_there_and_the_rest_from_a_peer(
    make, make_agent, make_worker, request_of, layout
):
    owner = make_worker("owner")
    tiered = TieredConnector(config())
    p2p = P2pConnector(make_agent("reader"), P2pConfig())
    engine = make(MultiConnector([tiered, p2p]))
    owner.agent.add_peer(p2p.agent.metadata())
    given = request_of(5, Give("h1", ("reader",)).params())
    taken = request_of(5, Take("h1", ("owner",)).params())
    engine.compute(taken, 0, [1, 2])
    for block, block_hash in enumerate(given.hashes):
        owner.pools[0][block] = content(block_hash, layout.block_bytes)

    owner.save(given, 0, range(5))
    load = engine.load(taken, [10, 11, 12, 13, 14])

    assert load.error is None
    assert engine.holds(taken, 0, [10, 11, 12, 13, 14])
    assert p2p.agent.stats().transfers["shm"].nbytes == 3 * layout.block_bytes


def test_two_workers_take_from_each_others_hosts(make, make_agent, request_of):
    agents = [make_agent("one"), make_agent("other")]
    agents[0].add_peer(agents[1].metadata())
    agents[1].add_peer(agents[0].metadata())
    one, other = (make(TieredConnector(config(peers=True), agent)) for agent in agents)
    request = request_of(3)
    one.compute(request, 0, [1, 2, 3])

    other.connector.source.hint("one", request.hashes)
    load = other.load(request, [10, 11, 12])

    assert load.error is None
    assert other.holds(request, 0, [10, 11, 12])


def test_the_registry_makes_it_of_its_config():
    made = registry.make("tiered", None, config())

    assert isinstance(made, TieredConnector)
    made.close()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: registry.make("tiered"), "host tier"),
        (lambda: registry.make("tiered", None, config(peers=True)), "agent"),
    ],
)
def test_what_it_cannot_do_without_is_asked_for(wrong, named):
    with pytest.raises(InvalidValue, match=named):
        wrong()


def test_several_shares_in_one_process_are_refused(layout):
    connector = TieredConnector(config())
    shares = [KvShare(bytearray(4 * layout.block_bytes), layout)] * 2

    with pytest.raises(InvalidValue, match="each rank"):
        connector.register(shares)


def test_nothing_is_under_way_after_closing(make, request_of):
    engine, request = make(), request_of(3)
    engine.compute(request, 0, [1, 2, 3])
    load = engine.connector.start_load(engine.connector.begin(request, 0, [10, 11, 12]))

    engine.connector.close()
    engine.connector.close()

    assert load.wait_settled(PATIENCE_S)
