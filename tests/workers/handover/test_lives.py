"""Random lives of imports and exports on a real pool: no block is lost, or taken for another."""

from collections import deque
from types import SimpleNamespace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stafette.kvtransfer.connectors.connector import Finish, KvConnector, KvRequest, LoadOrder
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.errors import TransferError
from stafette.workers.handover.exports import Exports
from stafette.workers.handover.imports import Imports
from stafette.workers.kvcache.pool import BlockPool

SIZE = 4
NUM_BLOCKS = 12
PROMPT_BLOCKS = 5


def chain(family: int) -> tuple[bytes, ...]:
    """Return a prompt's hashes. Families share their first two blocks by pairs."""
    shared = [f"shared-{family // 2}-{i}".encode() for i in range(2)]
    own = [f"own-{family}-{i}".encode() for i in range(2, PROMPT_BLOCKS)]
    return (*shared, *own)


class FakeEngine:
    """Has a real pool; its batches are settled, and its requests admitted, when a test says so."""

    def __init__(self) -> None:
        self.pool = BlockPool(NUM_BLOCKS, SIZE)
        self.is_stalled = False
        self.in_flight: list = []  # what waits for the batches on their way
        self.has_batches = False
        self.waiting: dict[str, bool] = {}
        self.num_running = 0

    def when_settled(self, call):
        if self.has_batches:
            self.in_flight.append(call)
        else:
            call()

    def settle(self):
        self.has_batches = False
        calls, self.in_flight = self.in_flight, []
        for call in calls:
            call()

    def is_waiting(self, request_id):
        return self.waiting.get(request_id)

    def stats(self):
        return SimpleNamespace(scheduler=SimpleNamespace(num_running=self.num_running))

    def tell_kv_events(self):
        pass


class FakeConnector(KvConnector):
    """Has every block; loads move, and saves are released, when a test says so."""

    name = "fake"

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.loads: list[Load] = []
        self.saves: list = []

    @classmethod
    def of(cls, agent, config):
        raise NotImplementedError

    def matched_tokens(self, request, num_held):
        return SIZE * len(request.hashes) - num_held

    def begin(self, request, first, blocks):
        return LoadOrder.of(request, first, blocks)

    def finish(self, request, reason=""):
        return Finish()

    def start_load(self, order):
        load = Load(order)
        if order.blocks:
            assert not self.engine.has_batches, "a step on its way may write there"
            load.begin_write()
            self.loads.append(load)
        return load

    def save_layer(self, layer, save):
        self.saves.append(save)

    def close(self):
        pass


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.engine = FakeEngine()
        self.connector = FakeConnector(self.engine)
        self.pool = self.engine.pool
        self.posted: deque = deque()
        self.imports = Imports(self.engine, self.connector, self.posted.append)
        self.exports = Exports(self.engine, self.connector, self.posted.append)
        self.contents: list[bytes | None] = [None] * NUM_BLOCKS
        self.answers: dict[KvRequest, list] = {}
        self.tables: list[list[int]] = []  # that sequences hold
        self.exported: list[KvRequest] = []
        self.count = 0

    def request(self, family: int) -> KvRequest:
        self.count += 1
        name = f"r{self.count}"
        return KvRequest(name, (), chain(family), SIZE)

    @rule(family=st.integers(0, 3))
    def begin_import(self, family):
        request = self.request(family)
        answers = self.answers[request] = []
        self.imports.begin(request, answers.append)

    @rule(family=st.integers(0, 3))
    def begin_export(self, family):
        request = self.request(family)
        self.exported.append(request)
        self.exports.begin(request)

    @precondition(lambda self: self.exported)
    @rule(data=st.data())
    def finish_export(self, data):
        request = data.draw(st.sampled_from(self.exported))
        self.exported.remove(request)
        self.exports.finish(request)

    @rule()
    def launch(self):
        self.engine.has_batches = True

    @rule()
    def settle(self):
        self.engine.settle()

    @precondition(lambda self: self.connector.loads)
    @rule(data=st.data())
    def move(self, data):
        """Blocks of a load arrive, or it fails, or its last write ends."""
        load = data.draw(st.sampled_from(self.connector.loads))
        move = data.draw(st.sampled_from(["arrive", "arrive", "arrive", "fail", "settle"]))
        if move == "settle":
            if not load.ended:
                load.fail(TransferError("it stopped"))
            self.connector.loads.remove(load)
            load.end_write()
        elif move == "fail":
            load.fail(TransferError("it failed"))
        else:
            order = load.order
            first = data.draw(st.integers(order.first, order.end - 1))
            if load.ended:  # what has arrived is written no more; the rest may be, until it settles
                first = max(first, order.first + load.num_arrived)
            for place in range(first, order.end):
                self.write(order.blocks[place - order.first], order.hashes[place - order.first])
            load.arrive(first, order.end)

    def write(self, block: int, content: bytes) -> None:
        assert self.pool.references(block) == 1, "a load writes where somebody else reads"
        self.contents[block] = content

    @rule()
    def run_posted(self):
        while self.posted:
            self.posted.popleft()()

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def end_request(self, data):
        self.imports.end(data.draw(st.sampled_from(list(self.answers))))

    @rule(data=st.data(), stalled=st.booleans())
    def step(self, data, stalled):
        """Requests whose blocks are here are not here yet, wait, run, or have ended."""
        for request, answers in self.answers.items():
            if answers:
                state = data.draw(st.sampled_from([None, True, False]))
                self.engine.waiting[request.request_id] = state
        self.engine.is_stalled = stalled
        self.imports.after_step()
        self.exports.after_step()
        self.engine.is_stalled = False

    @rule(family=st.integers(0, 3), length=st.integers(1, PROMPT_BLOCKS))
    def compute(self, family, length):
        """A sequence begins with what is cached, computes the rest and publishes it."""
        hashes = chain(family)[:length]
        cached = self.pool.match(hashes)
        table = self.pool.take(cached, length)
        if table is None:
            return
        for block, content in list(zip(table, hashes, strict=True))[len(cached) :]:
            self.write(block, content)
        self.tables.append(self.pool.publish(table, hashes, len(cached), length))

    @precondition(lambda self: self.tables)
    @rule()
    def end_sequence(self):
        self.pool.release(self.tables.pop(0))

    @precondition(lambda self: self.connector.saves)
    @rule(data=st.data())
    def release_save(self, data):
        save = data.draw(st.sampled_from(self.connector.saves))
        self.connector.saves.remove(save)
        save.release()

    @rule()
    def reset_cache(self):
        self.pool.reset_prefix_cache()

    @invariant()
    def what_is_found_is_what_was_computed(self):
        for block_hash in self.pool.cached_hashes:
            (block,) = self.find(block_hash)
            assert self.contents[block] == block_hash

    @invariant()
    def what_is_lent_stays_as_it_is(self):
        for save in self.connector.saves:
            for block, block_hash in zip(save.blocks, save.hashes, strict=True):
                assert self.contents[block] == block_hash
                assert self.pool.references(block) > 0

    def find(self, block_hash: bytes) -> list[int]:
        return [self.pool._index[block_hash]]

    def teardown(self):
        """Everything comes to its end: then every block is back, and everybody has an answer."""
        self.imports.close()
        self.exports.close()
        self.engine.settle()
        while self.connector.loads or self.connector.saves or self.posted:
            for load in self.connector.loads:
                load.cancel()
                load.end_write()
            for save in self.connector.saves:
                save.release()
            self.connector.loads, self.connector.saves = [], []
            self.run_posted()
            self.engine.settle()
        for table in self.tables:
            self.pool.release(table)
        assert self.pool.num_held == 0
        assert self.exports.counters.num_pinned == 0
        assert all(len(answers) == 1 for answers in self.answers.values())


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
