"""How regions are shown, opened and given back, and why some cannot be reached."""

import os
import threading
from dataclasses import replace

import pytest

from stafette.kvtransfer.errors import (
    AccessDenied,
    InvalidValue,
    LeaseEnded,
    MalformedMessage,
    PeerLost,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transport import Handover, PeerInfo
from stafette.kvtransfer.transports.same_host.config import SameHostConfig

MIB = 1 << 20
BLOCK = 4096


def test_only_a_peer_with_a_lease_gets_a_region(world):
    name = world.owner.name
    nobody = [99, Extents.of("kv", [(0, 1)]).pack()]

    for operation in ("open", "why", "digest"):
        with pytest.raises(LeaseEnded):
            world.control.call(f"{name}.{operation}", nobody, 1.0)


def test_region_that_is_not_shown_is_refused(world):
    grant = world.grant()
    world.owner.detach(world.region)

    with pytest.raises(AccessDenied, match="cannot read it"):
        world.read([(0, 1)], grant=grant)


@pytest.mark.parametrize("payload", [None, [1], [-1, ["kv", b"", b""]], ["1", ["kv", b"", b""]]])
def test_malformed_questions_are_refused(world, payload):
    for operation in ("open", "why", "digest"):
        with pytest.raises(MalformedMessage):
            world.control.call(f"{world.owner.name}.{operation}", payload, 1.0)


def test_region_is_asked_for_once(world):
    grant = world.grant()

    for _ in range(3):
        world.read([(0, BLOCK)], grant=grant)
        world.read([(0, MIB)], grant=world.grant())

    assert world.control.asked == [f"{world.owner.name}.open"]


def test_malformed_answer_of_the_owner_speaks_against_the_way(world):
    world.control.operations[f"{world.owner.name}.open"] = lambda *_: Handover(["x"], [])

    with pytest.raises(TransportUnavailable, match=world.owner.name):
        world.read([(0, 1)])


def test_ledger_that_is_none_speaks_against_the_way(world):
    ask = world.owner.operations()[f"{world.owner.name}.open"]

    def swapped(peer, payload):
        handed = ask(peer, payload)
        counts, ledger, *rest = handed.fds
        os.dup2(counts, ledger)
        return Handover(handed.answer, [counts, ledger, *rest])

    world.control.operations[f"{world.owner.name}.open"] = swapped

    with pytest.raises(TransportUnavailable):
        world.read([(0, 1)])


def test_peer_that_can_be_read_is_reachable(world):
    assert world.reader.unreachable(world.peer, world.region.info, world.local) == ""
    assert world.reader.capabilities.same_host


def test_reasons_for_which_a_peer_cannot_be_read(world):
    far = PeerInfo("owner", 7, "another host")
    info, local = world.region.info, world.local

    def reason(peer=world.peer, **changes):
        return world.reader.unreachable(peer, replace(info, **changes), local)

    assert reason(far) == "it runs on another host"
    assert reason(kind="cuda") == "region kv is cuda memory"
    assert reason(hints={world.owner.name: 2}).startswith("it shows region kv in version 2")
    assert reason(hints={})


@pytest.mark.parametrize("wrong", [{"inline_bytes": -1}, {"threads": 0}, {"open_timeout_s": 0.0}])
def test_wrong_options_are_named(wrong):
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        SameHostConfig(**wrong)


def test_closed_link_has_given_back_its_descriptors_and_mappings(world):
    before = world.open_files()
    world.read([(0, MIB)])
    assert world.open_files() > before

    world.link.close()

    assert world.open_files() == before


def test_failed_reads_keep_nothing_open(world):
    before = world.open_files()
    grant = world.grant()
    world.read([(0, 1)], grant=grant)
    world.gate.end(grant)
    jobs = [world.start(world.job([(0, size)], grant=grant)) for size in (1, MIB)]
    for job in jobs:
        with pytest.raises(LeaseEnded):
            job.wait()

    world.link.close()

    assert world.open_files() == before


def test_owner_gives_back_the_descriptors_of_a_region(world):
    num_files, _ = world.open_files()
    region = world.register("other", world.make_memory())
    assert world.open_files()[0] > num_files

    world.deregister(region)
    if world.owner.name == "shm":
        region.shared.close()
    del region

    assert world.open_files()[0] == num_files


def test_transport_gives_everything_back_at_its_end(world):
    world.read([(0, 1)])
    num_files, _ = world.open_files()

    world.reader.close()
    world.reader.close()
    world.owner.close()

    assert world.open_files()[0] < num_files
    assert not any("-owner-" in thread.name for thread in threading.enumerate())
    with pytest.raises(PeerLost):
        world.read([(0, 1)])


def test_older_generation_of_a_region_is_dropped_when_the_new_one_is_opened(world):
    world.read([(0, BLOCK)])
    _, mapped = world.open_files()

    world.deregister(world.region)
    world.region = world.register("kv", world.memory, generation=2)
    world.read([(0, BLOCK)])

    assert list(world.link._opened) == [("kv", 2)]
    assert world.open_files()[1] == mapped


def test_region_that_is_gone_is_dropped_when_another_one_is_read(world):
    other = world.register("other", world.make_memory(), generation=9)
    world.read([(0, BLOCK)])
    world.deregister(world.region)

    world.read([(0, MIB)], grant=world.grant(region=other))

    assert list(world.link._opened) == [("other", 9)]
    world.deregister(other)
    world.region = world.register("kv", world.memory, generation=10)
