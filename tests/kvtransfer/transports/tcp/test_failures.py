"""What ends a job before it is done: cancels, deadlines, broken ways, and owners that say no."""

import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from stafette.kvtransfer.errors import (
    AccessDenied,
    ChecksumMismatch,
    LeaseEnded,
    PeerLost,
    StaleBlocks,
    StaleEpoch,
    TransferCancelled,
    TransferTimedOut,
    TransportUnavailable,
)
from stafette.kvtransfer.leases.held import EndReason

pytestmark = [
    pytest.mark.usefixtures("lending"),
    pytest.mark.parametrize("lending", [False, True], ids=["", "lent"], indirect=True),
]

MIB = 1 << 20
KIB = 1 << 10
BLOCK = 4 * KIB
LARGE = 40 * MIB


@pytest.fixture
def held(ends, proxies, pairs):
    """Make a pair whose owner's bytes stop on the way after so many; return it and the proxy.

    Sockets on the way hold a dozen MiB: of LARGE, the owner has sent a part when it stops.
    """

    def make(hold_after=300 * KIB, nbytes=4 * MIB, **options):
        options = {"streams": 1} | options
        owner = ends(**options)
        proxy = proxies(owner)
        proxy.hold_after = hold_after
        return pairs(nbytes, owner=owner, through=proxy, **options), proxy

    return make


@pytest.fixture(params=[True, False], ids=["native", "pure"])
def native(request):
    return request.param


def test_after_a_cancelled_job_has_finished_not_one_byte_lands(held, native):
    pair, proxy = held(native=native)
    job = pair.read()
    assert proxy.reached.wait(20)

    pair.cancel(job)

    assert isinstance(job.outcome(), TransferCancelled)
    pair.into.memory[:] = 0
    proxy.release()
    after = pair.read((0, 0, BLOCK))  # on the same stream: what was on the way is through then
    assert after.outcome() is None
    assert not pair.into.memory[BLOCK:].any()
    assert pair.reader.counters.dialled == 1


def test_cancel_stops_the_owner_long_before_the_end(held, eventually):
    pair, proxy = held(nbytes=LARGE)
    job = pair.read()
    assert proxy.reached.wait(20)

    pair.cancel(job)
    proxy.release()

    assert isinstance(job.outcome(), TransferCancelled)
    eventually(lambda: pair.owner.num_claims == 0)
    assert pair.owner.counters.bytes_out < LARGE


def test_cancel_of_one_job_leaves_the_others_of_its_stream_alone(held):
    pair, proxy = held()
    jobs = [pair.read(), pair.read((0, 0, MIB)), pair.read((MIB, MIB, 3 * MIB))]
    assert proxy.reached.wait(20)

    pair.cancel(jobs[1])

    assert isinstance(jobs[1].outcome(), TransferCancelled)
    proxy.release()
    assert [jobs[0].outcome(), jobs[2].outcome()] == [None, None]
    assert pair.arrived()


def test_job_that_was_stopped_before_its_start_moves_nothing(pairs):
    pair = pairs()
    job = pair.job()

    pair.cancel(job)
    pair.link.start(job)

    assert isinstance(job.outcome(), TransferCancelled)
    assert pair.owner.counters.requests == 0


def test_cancel_after_the_end_changes_nothing(pairs):
    pair = pairs()
    job = pair.read()
    assert job.outcome() is None

    pair.cancel(job)

    assert pair.read().outcome() is None


def test_part_of_a_spread_job_that_fails_ends_the_others(held):
    pair, proxy = held(300 * KIB, 8 * MIB, streams=3, spread_bytes=MIB, max_requests=1)
    pair.owner.ledger.overwrite("source", np.arange(1_100, 1_110))  # in the second half

    job = pair.read()

    assert isinstance(job.outcome(), StaleBlocks)
    proxy.release()


def test_deadline_ends_a_job_whose_owner_says_nothing_more(held, native):
    pair, proxy = held(native=native)

    job = pair.read(timeout_s=0.3)

    assert isinstance(job.outcome(), TransferTimedOut)
    pair.into.memory[:] = 0
    proxy.release()
    assert pair.read((0, 0, BLOCK)).outcome() is None
    assert not pair.into.memory[BLOCK:].any()


def test_deadline_ends_a_job_that_waits_for_another(held):
    pair, proxy = held(max_requests=1)
    first = pair.read()

    second = pair.read((0, 0, BLOCK), timeout_s=0.2)

    assert isinstance(second.outcome(), TransferTimedOut)
    proxy.release()
    assert first.outcome() is None


def test_slow_way_is_no_fault(held):
    pair, proxy = held()
    job = pair.read()
    assert proxy.reached.wait(20)

    assert not job.finished.wait(0.3)
    proxy.release()

    assert job.outcome() is None
    assert pair.arrived()


def test_cut_connection_loses_its_jobs_and_the_next_one_dials_again(held, native):
    pair, proxy = held(native=native)
    jobs = [pair.read(), pair.read((0, 0, BLOCK))]
    assert proxy.reached.wait(20)

    proxy.cut()

    assert [type(job.outcome()) for job in jobs] == [PeerLost, PeerLost]
    proxy.release()
    assert pair.read().outcome() is None
    assert pair.arrived()
    assert pair.reader.counters.dialled == 2


def test_connection_on_which_an_answer_is_overdue_is_replaced(held, eventually):
    pair, proxy = held(stall_timeout_s=0.1)
    assert pair.read((0, 0, 1)).outcome() is None  # there is a connection
    first = pair.read(timeout_s=0.1)
    assert isinstance(first.outcome(), TransferTimedOut)
    proxy.hold_after = None  # on connections to come
    given_up = time.monotonic()
    eventually(lambda: time.monotonic() > given_up + 0.1)

    second = pair.read()

    assert second.outcome() is None
    assert pair.arrived()
    assert pair.reader.counters.dialled == 2


def test_byte_that_changed_on_the_way_is_found_by_verify(held, native):
    pair, proxy = held(hold_after=None, native=native)
    proxy.flip_at = 300 * KIB

    job = pair.read(verify=True)

    assert isinstance(job.outcome(), ChecksumMismatch)
    assert "owner/source" in str(job.error)
    assert pair.read(verify=True).outcome() is None


def test_byte_that_changed_on_the_way_is_not_found_without_verify(held):
    pair, proxy = held(hold_after=None)
    proxy.flip_at = 300 * KIB

    job = pair.read()

    assert job.outcome() is None
    assert int((pair.into.memory != pair.source.memory).sum()) == 1


def test_lease_that_ends_meanwhile_ends_the_job_with_its_reason(held):
    pair, proxy = held(nbytes=LARGE)
    job = pair.read()
    assert proxy.reached.wait(20)

    pair.owner.leases.end(pair.grant.lease_id, EndReason.REVOKED)
    proxy.release()

    assert isinstance(job.outcome(), LeaseEnded)
    assert EndReason.REVOKED.value in str(job.error)
    assert job.moved < LARGE


def test_block_that_is_overwritten_meanwhile_is_named(held):
    pair, proxy = held(nbytes=LARGE)
    job = pair.read()
    assert proxy.reached.wait(20)

    pair.owner.ledger.overwrite("source", np.array([1_000]))
    proxy.release()

    assert isinstance(job.outcome(), StaleBlocks)
    assert job.error.blocks == (1_000,)


@pytest.mark.parametrize("length", [BLOCK, MIB], ids=["copied", "sent from where it lies"])
def test_last_byte_is_not_the_end_before_the_promise_was_kept(pairs, length):
    """Blocks are overwritten when all bytes are sent, before the owner has said that it is done."""
    pair = pairs()
    claim = pair.owner.leases.claim

    @contextmanager
    def overwriting(*arguments):
        with claim(*arguments) as held:
            yield OverwrittenAtTheEnd(held, pair.owner.ledger)

    pair.owner.leases.claim = overwriting

    job = pair.read((0, 0, length))

    assert isinstance(job.outcome(), StaleBlocks)
    assert job.moved in (0, length)


class OverwrittenAtTheEnd:
    def __init__(self, claim, ledger) -> None:
        self.region = claim.region
        self._claim = claim
        self._ledger = ledger

    def check(self):
        self._ledger.overwrite("source", np.array([0]))
        self._claim.check()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epoch": 6}, StaleEpoch),
        ({"lease_id": 12345}, LeaseEnded),
        ({"generation": 2}, LeaseEnded),
        ({"blocks": 10}, AccessDenied),
    ],
)
def test_owner_refuses_what_does_not_fit_and_moves_nothing(pairs, change, error):
    pair = pairs(16 * BLOCK)
    grant = pair.grant
    if "blocks" in change:
        grant = pair.owner.grant(pair.source, range(10))
    if "generation" in change:
        grant = replace(grant, region=replace(grant.region, generation=2))
    plain = {name: change[name] for name in change.keys() & {"epoch", "lease_id"}}

    job = pair.read(grant=replace(grant, **plain))

    assert isinstance(job.outcome(), error)
    assert not pair.into.memory.any()
    assert pair.owner.counters.refused == {error.__name__: 1}
    assert pair.read().outcome() is None


def test_failure_of_the_gate_is_logged_there_and_no_secret_here(pairs, caplog):
    pair = pairs()
    claim, pair.owner.leases.claim = pair.owner.leases.claim, None

    job = pair.read()

    assert str(job.outcome()) == "the request failed at peer owner, whose log says why"
    assert "'NoneType' object is not callable" in caplog.text
    pair.owner.leases.claim = claim
    assert pair.read().outcome() is None


def test_memory_that_it_cannot_send_is_refused_with_the_reason(pairs):
    pair = pairs()
    region = replace(pair.source, info=replace(pair.source.info, name="on a GPU", kind="cuda"))
    pair.owner.ledger.add_region("on a GPU", region.info.num_blocks)
    grant = pair.owner.grant(region)

    job = pair.read((0, 0, BLOCK), grant=grant)

    assert isinstance(job.outcome(), TransportUnavailable)
    assert "cuda" in str(job.error)


def test_peer_that_is_not_there_ends_all_jobs_that_waited_for_it(ends, make_pair):
    pair = make_pair(ends(), ends("reader", epoch=8, streams=1), MIB)
    pair.owner.server.close()

    jobs = [pair.read(), pair.read()]

    assert [type(job.outcome()) for job in jobs] == [PeerLost, PeerLost]
    assert jobs[0].error is not jobs[1].error


def test_closed_link_ends_its_jobs_and_takes_no_more(held, native):
    pair, proxy = held(native=native)
    jobs = [pair.read(), pair.read()]
    assert proxy.reached.wait(20)

    pair.link.close()
    pair.link.close()

    assert [type(job.outcome(0)) for job in jobs] == [PeerLost, PeerLost]
    assert isinstance(pair.read().outcome(0), PeerLost)


def test_closed_owner_ends_the_jobs_of_its_readers(held):
    pair, proxy = held(nbytes=LARGE)
    job = pair.read()
    assert proxy.reached.wait(20)

    pair.owner.transport.close()
    proxy.release()

    assert isinstance(job.outcome(), PeerLost)
    assert isinstance(pair.read().outcome(), PeerLost)


def test_job_may_post_another_when_it_finishes(pairs):
    pair = pairs(streams=1)
    second = pair.job()
    first = pair.job((0, 0, BLOCK))
    finish = first.finish
    first.finish = lambda error=None: (finish(error), pair.link.start(second))

    pair.link.start(first)

    assert second.outcome() is None
    assert pair.arrived()


def test_more_requests_than_allowed_are_refused_with_the_reason(held):
    pair, proxy = held(nbytes=LARGE, max_requests=2)
    pair.link._streams[0]._books._max_requests = 100  # a reader that does not keep to the limit

    jobs = [pair.read() for _ in range(4)]

    assert proxy.reached.wait(20)
    proxy.release()
    outcomes = [type(job.outcome()) for job in jobs]
    assert outcomes == [type(None), type(None), TransportUnavailable, TransportUnavailable]
    assert "2 requests" in str(jobs[3].error)


def test_more_connections_than_allowed_are_refused(ends, make_pair):
    owner = ends(max_connections=1)
    first = make_pair(owner, ends("reader", epoch=8), MIB)
    assert first.read((0, 0, BLOCK)).outcome() is None

    second = first.read()  # a large one: on a second connection

    assert isinstance(second.outcome(), PeerLost)
    assert first.read((0, 0, BLOCK)).outcome() is None
