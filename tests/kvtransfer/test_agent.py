"""What an agent does around its transports, which are moved by hand here."""

import threading
import time

import numpy as np
import pytest

from stafette.kvtransfer import registry
from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    Incompatible,
    InvalidValue,
    LeaseEnded,
    PeerLost,
    StaleEpoch,
    TransferCancelled,
    TransferError,
    TransferTimedOut,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.posting import ReadOptions
from stafette.kvtransfer.routes import BreakerConfig
from stafette.kvtransfer.transfer import TransferState

TOKEN = b"the cluster's token"
PATIENCE_S = 20.0
BLOCK = 64
POOL = 16 * BLOCK
SPEEDS = {"shm": 4.0, "tcp": 2.0, "process_vm": 1.0}  # GB/s


@pytest.fixture
def make_agent(monkeypatch, hand_transport):
    made: list[Agent] = []

    def make_transport(name, surroundings, options=None):
        return hand_transport(name, surroundings, SPEEDS[name])

    monkeypatch.setattr(registry, "make", make_transport)

    def make(name: str, **config) -> Agent:
        defaults = {"token": TOKEN, "transports": ("shm",), "call_timeout_s": 5.0}
        agent = Agent(AgentConfig(name=name, **(defaults | config)))
        agent.pool = np.zeros(POOL, np.uint8)
        agent.register("pool", agent.pool, BLOCK)
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.close()


@pytest.fixture
def pair(make_agent):
    """Return (owner, reader, the reader's transport, a lease on all of the owner's pool)."""
    owner, reader = make_agent("owner"), make_agent("reader")
    owner.pool[:] = np.arange(POOL) % 251
    reader.add_peer(owner.metadata())
    lease = reader.accept(owner.grant("pool", range(16)))
    return owner, reader, reader._transports["shm"], lease


def spans(*ranges) -> Extents:
    return Extents.of("pool", ranges)


def finish(transport, error=None) -> None:
    (job,) = transport.jobs
    transport.links[-1].copy(job) if error is None else transport.links[-1].finish(job, error)


def test_a_read_is_done_when_its_bytes_are_there(pair):
    owner, reader, transport, lease = pair

    transfer = reader.read(spans((0, 10), (10, 10)), spans((100, 10), (110, 10)), lease)

    assert transfer.poll() is TransferState.PENDING
    assert len(transport.jobs[0].into) == 1  # neighbours on both sides are one range
    finish(transport)
    assert transfer.wait(PATIENCE_S)
    assert np.array_equal(reader.pool[:20], owner.pool[100:120])
    assert reader.stats().transfers["shm"].done == 1
    assert reader.stats().transfers["shm"].nbytes == 20


def test_an_overdue_transfer_fails_at_once_but_its_blocks_stay_in_quarantine(pair):
    _, reader, transport, lease = pair

    transfer = reader.read(spans((BLOCK, BLOCK)), spans((0, BLOCK)), lease, 0.05)
    with pytest.raises(TransferTimedOut, match=r"0\.05 s"):
        transfer.wait(PATIENCE_S)

    (job,) = transport.jobs
    assert transport.links[-1].interrupted == [job]
    assert job.stop.value == 1
    assert not transfer.settled
    assert reader.quarantined("pool").tolist() == [1]
    finish(transport)  # the transport could not stop: its bytes came late
    assert transfer.settled
    assert transfer.poll() is TransferState.FAILED
    assert reader.quarantined("pool").tolist() == []


def test_a_region_with_a_transfer_that_does_not_end_cannot_be_deregistered(make_agent):
    owner, reader = make_agent("owner"), make_agent("reader", call_timeout_s=0.2)
    reader.add_peer(owner.metadata())
    lease = reader.accept(owner.grant("pool", [0]))
    transfer = reader.read(spans((0, 1)), spans((0, 1)), lease)

    with pytest.raises(TransferTimedOut, match="cancelling a read into pool"):
        reader.deregister("pool")

    with pytest.raises(TransferCancelled):
        transfer.wait(PATIENCE_S)
    finish(reader._transports["shm"])
    reader.deregister("pool")
    with pytest.raises(InvalidValue, match="pool"):
        reader.deregister("pool")


def test_the_quickest_way_is_taken_and_another_when_it_does_not_exist(make_agent):
    owner = make_agent("owner", transports=("shm", "tcp"))
    reader = make_agent("reader", transports=("process_vm", "tcp", "shm"))
    reader.add_peer(owner.metadata())
    lease = reader.accept(owner.grant("pool", range(16)))
    ways = reader._transports

    transfer = reader.read(spans((0, 10)), spans((0, 10)), lease)
    finish(ways["shm"], TransportUnavailable("shm", "owner", "no descriptors pass here"))
    finish(ways["tcp"])

    assert transfer.wait(PATIENCE_S)
    assert transfer.transport == "tcp"
    assert reader.routes("owner")["shm"].failures == 1


def test_a_failure_that_is_no_missing_way_is_not_hidden_by_a_second_try(make_agent):
    owner = make_agent("owner", transports=("shm", "tcp"))
    reader = make_agent("reader", transports=("shm", "tcp"))
    reader.add_peer(owner.metadata())
    lease = reader.accept(owner.grant("pool", range(16)))

    transfer = reader.read(spans((0, 10)), spans((0, 10)), lease)
    finish(reader._transports["shm"], ChecksumMismatch("owner", "pool"))

    with pytest.raises(ChecksumMismatch):
        transfer.wait(PATIENCE_S)
    assert reader._transports["tcp"].jobs == []


def test_a_way_that_fails_again_and_again_rests_and_the_next_best_is_taken(make_agent):
    breaker = BreakerConfig(failures=2, cool_down_s=30.0)
    owner = make_agent("owner", transports=("shm", "tcp"))
    reader = make_agent("reader", transports=("shm", "tcp"), breaker=breaker)
    reader.add_peer(owner.metadata())
    lease = reader.accept(owner.grant("pool", range(16)))

    for _ in range(2):
        reader.read(spans((0, 10)), spans((0, 10)), lease)
        finish(reader._transports["shm"], ChecksumMismatch("owner", "pool"))
    transfer = reader.read(spans((0, 10)), spans((0, 10)), lease)
    finish(reader._transports["tcp"])

    assert transfer.wait(PATIENCE_S)
    assert reader.routes("owner")["shm"].rests_s > 25


def test_a_deadline_that_was_short_says_nothing_against_the_way(pair):
    _, reader, transport, lease = pair

    for _ in range(5):
        transfer = reader.read(spans((0, 1)), spans((0, 1)), lease, 0.02)
        with pytest.raises(TransferTimedOut):
            transfer.wait(PATIENCE_S)
        finish(transport)

    assert reader.routes("owner")["shm"].failures == 0


def test_a_forced_transport_is_the_only_one_that_is_tried(make_agent):
    owner = make_agent("owner", transports=("shm", "tcp"))
    reader = make_agent("reader", transports=("shm", "tcp"))
    reader.add_peer(owner.metadata())
    lease = reader.accept(owner.grant("pool", range(16)))
    options = ReadOptions(transport="tcp")

    transfer = reader.read(spans((0, 10)), spans((0, 10)), lease, options=options)
    finish(reader._transports["tcp"], TransportUnavailable("tcp", "owner", "closed"))

    with pytest.raises(TransportUnavailable, match="closed"):
        transfer.wait(PATIENCE_S)
    assert reader._transports["shm"].jobs == []


def test_when_no_way_leads_there_the_error_names_each_and_why(make_agent):
    owner = make_agent("owner")
    reader = make_agent("reader", transports=("shm", "tcp"))
    reader.add_peer(owner.metadata())
    lease = reader.accept(owner.grant("pool", [0]))
    for name, transport in reader._transports.items():
        transport.refusal = f"no {name} here"

    transfer = reader.read(spans((0, 1)), spans((0, 1)), lease)

    with pytest.raises(TransportUnavailable, match=r"no shm here.*no tcp here"):
        transfer.wait(PATIENCE_S)


def test_a_notification_goes_only_with_a_read_that_is_done(pair):
    owner, reader, transport, lease = pair
    for payload, error in [(b"bad", PeerLost("owner", "for this test")), (b"good", None)]:
        options = ReadOptions(notify=payload)
        reader.read(spans((0, 1)), spans((0, 1)), lease, options=options)
        finish(transport, error)

    assert [each.payload for each in owner.notifications(PATIENCE_S)] == [b"good"]
    assert owner.notifications(0.1) == []


def test_notifications_of_one_peer_come_in_order_each_once(pair):
    owner, reader, _, _ = pair

    for number in range(200):
        reader.notify("owner", b"%d" % number)

    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < 200 and time.monotonic() < deadline:
        found += [each.payload for each in owner.notifications(1.0)]
    assert found == [b"%d" % number for number in range(200)]


def test_a_notification_that_nobody_acknowledges_is_counted(pair):
    owner, reader, _, _ = pair
    owner.close()

    reader.notify("owner", b"hello", 0.3)

    deadline = time.monotonic() + PATIENCE_S
    while not reader.stats().not_notified:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_loss_of_the_connection_ends_what_is_under_way(pair):
    owner, reader, _, lease = pair
    transfer = reader.read(spans((0, 1)), spans((0, 1)), lease)

    owner.close()

    with pytest.raises(PeerLost):
        transfer.wait(PATIENCE_S)
    assert transfer.settled


def test_a_newer_life_of_a_peer_replaces_the_older_and_ends_its_leases_and_transfers(
    make_agent,
):
    old, reader = make_agent("owner"), make_agent("reader")
    reader.add_peer(old.metadata())
    ticket = old.grant("pool", [0])
    lease = reader.accept(ticket)
    transfer = reader.read(spans((0, 1)), spans((0, 1)), lease)

    new = make_agent("owner")
    reader.add_peer(new.metadata())

    with pytest.raises(PeerLost):
        transfer.wait(PATIENCE_S)
    assert "restarted" in str(lease.ended)
    with pytest.raises(StaleEpoch):
        reader.accept(ticket)
    with pytest.raises(StaleEpoch):
        reader.add_peer(old.metadata())
    with pytest.raises(LeaseEnded):
        reader.read(spans((0, 1)), spans((0, 1)), lease).wait(PATIENCE_S)


def test_a_plan_made_for_an_older_life_does_not_read_from_the_newer(make_agent):
    old, reader = make_agent("owner"), make_agent("reader")
    reader.add_peer(old.metadata())
    prepared = reader.prepare(spans((0, 1)), spans((0, 1)), "owner")
    new = make_agent("owner")
    reader.add_peer(new.metadata())
    lease = reader.accept(new.grant("pool", [0]))

    with pytest.raises(StaleEpoch):
        prepared.post(lease).wait(PATIENCE_S)


def test_what_a_reader_held_ends_when_its_next_life_connects(make_agent):
    reasons: list[str] = []
    owner, reader = make_agent("owner"), make_agent("reader")
    reader.add_peer(owner.metadata())
    note = lambda reason: reasons.append(reason.name)  # noqa: E731
    reader.accept(owner.grant("pool", [0], on_ended=note))

    again = make_agent("reader")
    again.add_peer(owner.metadata())
    again.accept(owner.grant("pool", [1]))

    assert reasons == ["HOLDER_GONE"]


def test_peers_of_another_kind_are_refused_before_anything_else(make_agent):
    owner = make_agent("owner", compatibility="model a")
    reader = make_agent("reader", compatibility="model b")

    with pytest.raises(Incompatible, match="digest"):
        reader.add_peer(owner.metadata())


def test_a_peer_with_our_own_name_is_refused(make_agent):
    one, other = make_agent("same"), make_agent("same")

    with pytest.raises(InvalidValue, match="own name"):
        one.add_peer(other.metadata())


def test_a_peer_that_asks_us_something_is_known_from_then_on(pair):
    owner, reader, _, _ = pair

    assert owner.peers() == ["reader"]
    assert owner.accept(reader.grant("pool", [0])).region.name == "pool"


def test_a_write_that_is_cancelled_ends_the_targets_read_and_frees_both_sides(pair):
    owner, reader, _, _ = pair
    lease = reader.accept(owner.offer("pool", [0]))
    transfer = reader.write(spans((0, BLOCK)), spans((0, BLOCK)), lease)
    (job,) = owner._transports["shm"].await_jobs(1)

    transfer.cancel()
    owner._transports["shm"].links[-1].finish(job, LeaseEnded(1, "as a real transport notices"))

    with pytest.raises(TransferCancelled):
        transfer.wait(PATIENCE_S)
    assert transfer.wait_settled(PATIENCE_S)
    assert not len(reader.leased("pool"))
    assert owner.quarantined("pool").tolist() == []


def test_a_write_with_a_deadline_beyond_every_lease_is_begun_all_the_same(make_agent):
    owner = make_agent("owner")
    writer = make_agent("writer", lease=LeaseConfig(ttl_s=1.0, max_life_s=5.0))
    writer.add_peer(owner.metadata())
    lease = writer.accept(owner.offer("pool", [0]))

    transfer = writer.write(spans((0, BLOCK)), spans((0, BLOCK)), lease, 60.0)
    owner._transports["shm"].await_jobs(1)
    finish(owner._transports["shm"])

    assert transfer.wait(PATIENCE_S)


def test_a_write_for_which_no_lease_is_left_ends_and_says_so(make_agent):
    owner = make_agent("owner")
    writer = make_agent("writer", lease=LeaseConfig(max_leases=1))
    writer.add_peer(owner.metadata())
    writer.grant("pool", [0])
    lease = writer.accept(owner.offer("pool", [0]))

    transfer = writer.write(spans((0, BLOCK)), spans((0, BLOCK)), lease)

    with pytest.raises(TransferError, match="max_leases"):
        transfer.wait(PATIENCE_S)
    assert transfer.settled
    assert writer.stats().unsettled == 0


def test_a_transport_that_fails_to_interrupt_takes_no_other_transfers_deadline(pair, monkeypatch):
    _, reader, transport, lease = pair
    first = reader.read(spans((0, 1)), spans((0, 1)), lease, 0.05)
    monkeypatch.setattr(transport.links[-1], "interrupt", lambda job: 1 / 0)
    second = reader.read(spans((1, 1)), spans((1, 1)), lease, 0.1)

    for transfer in (first, second):
        with pytest.raises(TransferTimedOut):
            transfer.wait(PATIENCE_S)
    for job in list(transport.jobs):
        transport.links[-1].finish(job)


def test_an_offer_that_is_revoked_is_over_when_nothing_writes_into_it(pair):
    owner, reader, _, _ = pair
    ended = threading.Event()
    ticket = owner.offer("pool", [0], on_ended=lambda reason: ended.set())
    transfer = reader.write(spans((0, BLOCK)), spans((0, BLOCK)), reader.accept(ticket))
    (job,) = owner._transports["shm"].await_jobs(1)

    owner.revoke(ticket)

    assert job.stop.value == 1
    assert not ended.is_set()
    owner._transports["shm"].links[-1].finish(job)
    assert ended.wait(PATIENCE_S)
    with pytest.raises((LeaseEnded, TransferCancelled)):
        transfer.wait(PATIENCE_S)


def test_names_that_nobody_registered_are_answered_with_those_that_are(pair):
    owner, reader, _, lease = pair

    with pytest.raises(InvalidValue, match="these are: pool"):
        owner.grant("pole", [0])
    with pytest.raises(InvalidValue, match="known are: owner"):
        reader.notify("nobody", b"")
    with pytest.raises(InvalidValue, match="registered"):
        reader.register("pool", np.zeros(8, np.uint8))


def test_closing_twice_ends_everything_once(make_agent):
    before = set(threading.enumerate())
    agent = make_agent("alone")
    reasons: list[str] = []
    agent.grant("pool", [0], on_ended=lambda reason: reasons.append(reason.name))

    agent.close()
    agent.close()

    assert reasons == ["CLOSED"]
    assert set(threading.enumerate()) <= before


def test_an_agent_that_cannot_be_made_leaves_nothing_behind(make_agent, monkeypatch):
    port = make_agent("first")._server.endpoint.port
    before = set(threading.enumerate())
    made = []
    make = registry.make
    monkeypatch.setattr(registry, "make", lambda *args: made.append(make(*args)) or made[-1])

    with pytest.raises(InvalidValue, match="port"):
        Agent(AgentConfig(name="second", token=TOKEN, transports=("shm",), port=port))

    assert made[0].closed
    assert set(threading.enumerate()) == before
