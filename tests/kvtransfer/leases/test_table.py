import threading

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from stafette.kvtransfer.buffers import Shape, region_of
from stafette.kvtransfer.errors import AccessDenied, InvalidValue, LeaseEnded, StaleBlocks
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.leases.held import EndReason, Terms
from stafette.kvtransfer.leases.table import LeaseTable
from stafette.kvtransfer.ledger import Ledger, LedgerView

BLOCK = 16
NUM_BLOCKS = 8
EPOCH = 7


class World:
    """A table on a clock that stands still, and a region of eight blocks."""

    def __init__(self, **config) -> None:
        self.now = 100.0
        self.config = LeaseConfig(**({"ttl_s": 30.0, "max_life_s": 90.0} | config))
        self.ledger = Ledger(EPOCH, num_slots=self.config.max_leases)
        self.table = LeaseTable("owner", self.ledger, self.config, lambda: self.now)
        self.region = region_of(np.zeros(NUM_BLOCKS * BLOCK, np.uint8), Shape("pool", BLOCK, 1))
        self.ledger.add_region("pool", NUM_BLOCKS)
        self.view = LedgerView(self.ledger.memory.fd, self.ledger.memory.nbytes)
        self.ended: list[EndReason] = []

    def grant(self, blocks=(0, 1), use="read", ttl_s=30.0, holder=""):
        terms = Terms(use, ttl_s, holder, self.ended.append)
        return self.table.grant(self.region, blocks, terms)

    def extents(self, *blocks) -> Extents:
        return Extents.of_blocks("pool", blocks, BLOCK)

    def close(self) -> None:
        self.table.close()
        self.ledger.close()


@pytest.fixture
def world():
    world = World(max_leases=4)
    yield world
    world.close()


def test_a_lease_can_be_claimed_by_whoever_opened_it_first_and_nobody_else(world):
    lease = world.grant()

    world.table.open("reader", 1, lease.id)

    with world.table.claim("reader", lease.id, world.extents(0)) as claim:
        assert claim.region is world.region
    with pytest.raises(AccessDenied, match="another peer"):
        world.table.open("thief", 1, lease.id)
    with (
        pytest.raises(AccessDenied, match="another peer"),
        world.table.claim("thief", lease.id, world.extents(0)),
    ):
        pass


def test_a_lease_granted_to_a_peer_is_opened_by_that_one_only(world):
    lease = world.grant(holder="reader")

    with pytest.raises(AccessDenied):
        world.table.open("other", 1, lease.id)

    assert world.table.open("reader", 1, lease.id)[0] is lease


def test_a_lease_that_is_not_kept_alive_expires_and_gives_its_blocks_back(world):
    lease = world.grant()
    world.table.open("reader", 1, lease.id)

    world.now += 29.9
    world.table.expire()
    assert world.ended == []
    world.now += 0.2
    assert world.table.expire() is None

    assert world.ended == [EndReason.EXPIRED]
    assert not len(world.table.leased("pool"))
    with pytest.raises(LeaseEnded):
        world.table.open("reader", 1, lease.id)
    assert world.table.counters().ended == {EndReason.EXPIRED: 1}


def test_a_heartbeat_brings_a_lease_back_to_two_thirds_of_its_time(world):
    lease = world.grant()
    world.table.open("reader", 1, lease.id)

    world.now += 5
    assert world.table.renew("reader", [lease.id]) == [25.0]  # it had more left than 20 s
    world.now += 20
    assert world.table.renew("reader", [lease.id]) == [20.0]
    world.now += 19
    world.table.expire()

    assert world.ended == []


def test_heartbeats_of_others_and_of_ended_leases_are_told_that_nothing_is_left(world):
    lease, ended = world.grant(), world.grant()
    for each in (lease, ended):
        world.table.open("reader", 1, each.id)
    world.table.end(ended.id, EndReason.REVOKED)

    assert world.table.renew("other", [lease.id]) == [0.0]
    assert world.table.renew("reader", [ended.id, 12345]) == [0.0, 0.0]


def test_no_heartbeat_keeps_a_lease_beyond_its_longest_life(world):
    lease = world.grant()
    world.table.open("reader", 1, lease.id)

    for _ in range(17):
        world.now += 5
        assert world.table.renew("reader", [lease.id]) != [0.0]
        world.table.expire()
    world.now += 5
    world.table.expire()

    assert world.ended == [EndReason.OUTLIVED]


def test_a_claim_keeps_a_lease_alive_without_heartbeats_up_to_the_longest_life(world):
    lease = world.grant()
    world.table.open("reader", 1, lease.id)

    with world.table.claim("reader", lease.id, world.extents(0)) as claim:
        world.now += 31
        world.table.expire()
        claim.check()
        world.now += 60
        world.table.expire()
        with pytest.raises(LeaseEnded, match="longest life"):
            claim.check()

    assert world.ended == [EndReason.OUTLIVED]


def test_a_read_that_is_under_way_learns_that_its_lease_has_ended(world):
    lease = world.grant()
    world.table.open("reader", 1, lease.id)

    with world.table.claim("reader", lease.id, world.extents(0)) as claim:
        world.table.end(lease.id, EndReason.REVOKED)

        assert world.ended == [EndReason.REVOKED]  # the blocks are free: the reader will notice
        with pytest.raises(LeaseEnded, match="took it back"):
            claim.check()


def test_a_lease_that_is_being_filled_ends_when_nothing_writes_any_more(world):
    lease = world.grant(use="fill")
    world.table.open("writer", 1, lease.id)
    cancelled = []

    with world.table.claim("writer", lease.id, world.extents(0), "fill") as claim:
        world.table.when_ending(claim, lambda: cancelled.append(1))
        world.table.end(lease.id, EndReason.REVOKED)

        assert cancelled == [1]
        assert world.ended == []
        assert list(world.table.leased("pool")) == [0, 1]
        with pytest.raises(LeaseEnded):
            world.table.open("writer", 1, lease.id)
    assert world.ended == [EndReason.REVOKED]
    assert not len(world.table.leased("pool"))


def test_overwritten_blocks_are_named_whether_before_or_during_a_claim(world):
    lease = world.grant(blocks=(1, 3, 6))
    world.table.open("reader", 1, lease.id)

    with world.table.claim("reader", lease.id, world.extents(6, 1)) as claim:
        world.ledger.overwrite("pool", np.array([6]))
        with pytest.raises(StaleBlocks) as caught:
            claim.check()

    assert caught.value.blocks == (6,)
    with pytest.raises(StaleBlocks), world.table.claim("reader", lease.id, world.extents(6)):
        pass
    with world.table.claim("reader", lease.id, world.extents(1, 3)):
        pass


@pytest.mark.parametrize("blocks", [(2,), (1, 2), (0, 1, 7)])
def test_blocks_beyond_the_lease_are_refused(world, blocks):
    lease = world.grant(blocks=(0, 1))
    world.table.open("reader", 1, lease.id)

    with (
        pytest.raises(AccessDenied, match="does not cover"),
        world.table.claim("reader", lease.id, world.extents(*blocks)),
    ):
        pass

    assert world.table.counters().refused == 1


def test_a_lease_to_read_opens_the_ledger_and_one_to_fill_does_not(world):
    to_read, to_fill = world.grant(), world.grant(use="fill")

    assert world.view.holds(to_read.slot, to_read.id)
    assert world.view.holds(to_fill.slot, 0)
    world.table.end(to_read.id, EndReason.RELEASED)
    assert world.view.holds(to_read.slot, 0)


def test_what_cannot_be_leased_is_named(world):
    with pytest.raises(InvalidValue, match=r"blocks.*0\.\.7"):
        world.grant(blocks=(0, NUM_BLOCKS))
    with pytest.raises(InvalidValue, match="blocks"):
        world.grant(blocks=())
    with pytest.raises(InvalidValue, match="ttl_s"):
        world.grant(ttl_s=90.1)
    for _ in range(4):
        world.grant()
    with pytest.raises(InvalidValue, match="max_leases"):
        world.grant()


def test_a_callback_that_fails_keeps_no_other_lease_from_ending(world, caplog):
    world.table.grant(world.region, [0], Terms("read", 1.0, on_ended=lambda reason: 1 / 0))
    world.grant(ttl_s=1.0)

    world.now += 2
    world.table.expire()

    assert world.ended == [EndReason.EXPIRED]
    assert "callback" in caplog.text


def test_closing_ends_every_lease_once_and_grants_no_more(world):
    world.grant()
    world.grant(use="fill")

    world.table.close()
    world.table.close()

    assert world.ended == [EndReason.CLOSED] * 2
    with pytest.raises(InvalidValue, match="closed"):
        world.grant()


def test_leases_that_are_ended_by_many_threads_at_once_end_once():
    world = World(max_leases=512)
    leases = [world.grant() for _ in range(500)]

    def end_all() -> None:
        for lease in leases:
            world.table.end(lease.id, EndReason.RELEASED)

    threads = [threading.Thread(target=end_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(world.ended) == 500
    assert world.table.counters().living == 0
    world.close()


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: the books agree with a plain dictionary of leases."""

    leases = Bundle("leases")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(max_leases=32)
        self.model: dict[int, dict] = {}
        self.all = []

    @rule(
        target=leases,
        blocks=st.sets(st.integers(0, NUM_BLOCKS - 1), min_size=1),
        ttl_s=st.sampled_from([1.0, 5.0, 30.0]),
        use=st.sampled_from(["read", "fill"]),
    )
    def grant(self, blocks, ttl_s, use):
        if len(self.model) == 32:
            return None
        lease = self.world.grant(sorted(blocks), use, ttl_s, holder="p")
        self.model[lease.id] = {
            "blocks": blocks,
            "ttl": ttl_s,
            "expires": self.world.now + ttl_s,
            "dies": self.world.now + 90.0,
            "claims": 0,
            "ending": False,
            "use": use,
        }
        self.all.append(lease)
        return lease

    @rule(lease=leases)
    def renew(self, lease):
        if lease is None:
            return
        (left,) = self.world.table.renew("p", [lease.id])
        known = self.model.get(lease.id)
        if known is None or known["ending"]:
            assert left == 0
            return
        wished = self.world.now + known["ttl"] * 2 / 3
        known["expires"] = max(known["expires"], min(wished, known["dies"]))
        assert left == pytest.approx(max(0.0, known["expires"] - self.world.now))

    @rule(target=claims, lease=leases)
    def claim(self, lease):
        if lease is None:
            return None
        known = self.model.get(lease.id)
        hold = self.world.table.claim("p", lease.id, Extents.of("pool", []), lease.terms.use)
        if known is None or known["ending"]:
            with pytest.raises(LeaseEnded):
                hold.__enter__()
            return None
        hold.__enter__()
        known["claims"] += 1
        return lease, hold

    @rule(claimed=consumes(claims))
    def give_back(self, claimed):
        if claimed is None:
            return
        lease, hold = claimed
        hold.__exit__(None, None, None)
        known = self.model.get(lease.id)
        if known is not None:
            known["claims"] -= 1
            if known["ending"] and not known["claims"]:
                del self.model[lease.id]

    @rule(lease=leases)
    def end(self, lease):
        if lease is not None:
            ended = self.world.table.end(lease.id, EndReason.RELEASED, "p")
            assert ended == (lease.id in self.model)
            self._end(lease.id)

    @rule(seconds=st.sampled_from([0.5, 2.0, 40.0]))
    def wait(self, seconds):
        self.world.now += seconds
        self.world.table.expire()
        for lease_id, known in list(self.model.items()):
            if self.world.now >= known["dies"]:
                self._end(lease_id)
            elif self.world.now >= known["expires"] and not known["ending"]:
                if known["claims"]:
                    known["expires"] = min(self.world.now + known["ttl"] * 2 / 3, known["dies"])
                else:
                    self._end(lease_id)

    def _end(self, lease_id) -> None:
        known = self.model.get(lease_id)
        if known is None:
            return
        known["ending"] = True
        if known["use"] == "read" or not known["claims"]:
            del self.model[lease_id]

    @invariant()
    def what_is_leased_is_what_lives(self):
        wanted = set().union(*(known["blocks"] for known in self.model.values()))
        assert set(self.world.table.leased("pool").tolist()) == wanted
        counters = self.world.table.counters()
        assert counters.living == len(self.model)
        assert counters.granted - sum(counters.ended.values()) == counters.living

    @invariant()
    def the_ledger_shows_exactly_the_living_leases_to_read(self):
        shown = {int(word) for word in self.world.view.words[8:] if word}
        reading = {i for i, k in self.model.items() if k["use"] == "read" and not k["ending"]}
        assert shown == reading

    def teardown(self):
        self.world.close()


TestAnyOrder = AnyOrder.TestCase
