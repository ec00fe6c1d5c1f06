"""What shm alone does: files, the seals of shared memory, the native library's absence."""

import mmap
import os
import time

import numpy as np
import pytest

from stafette.kvtransfer.errors import LeaseEnded, PeerLost, TransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.native import moving
from stafette.kvtransfer.transfer import TransferState

MIB = 1 << 20


def test_peer_cannot_map_what_it_is_given_to_write(shm):
    handed = shm.control.operations["shm.open"](shm.peer, [shm.grant().lease_id, one_byte()])

    counts, ledger, memory = handed.fds
    for fd in (counts, ledger, memory):
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 8, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        os.close(fd)


def one_byte(region="kv"):
    return Extents.of(region, [(0, 1)]).pack()


def test_private_memory_cannot_be_mapped_and_the_reason_says_so(shm):
    region = shm.register("private", np.zeros(4096, np.uint8))

    assert "shm" not in region.info.hints
    reason = shm.reader.unreachable(shm.peer, region.info, shm.local)
    assert reason == "region private is not SharedMemory, which alone others can map"


# Files


def test_part_of_a_file_is_read_from_its_place(shm, make_file):
    content = np.random.default_rng(2).integers(0, 256, 3 * MIB, np.uint8)
    region = shm.register("file", make_file(content, offset=1000))
    into = [(7, 2 * MIB), (3 * MIB, 5), (3 * MIB + 5, 0)]
    source = [(11, 2 * MIB), (3 * MIB - 5, 5), (0, 0)]

    job = shm.read(source, into=into, grant=shm.grant(region=region), verify=True)

    assert np.array_equal(shm.pool[7 : 7 + 2 * MIB], content[11 : 11 + 2 * MIB])
    assert np.array_equal(shm.pool[3 * MIB : 3 * MIB + 5], content[-5:])
    assert not shm.pool[3 * MIB + 5 :].any()
    assert job.moved == 2 * MIB + 5


def test_file_is_never_read_in_the_callers_thread(shm, make_file):
    region = shm.register("file", make_file(np.ones(4096, np.uint8)))
    grant = shm.grant(region=region)

    finished_by = {shm.read([(0, 1)], grant=grant).finished_by.name for _ in range(3)}

    assert all(name.startswith("shm-owner-") for name in finished_by)


def test_descriptor_of_a_file_lets_nobody_write(shm, make_file):
    region = shm.register("file", make_file(np.ones(4096, np.uint8)))
    lease_id = shm.grant(region=region).lease_id

    handed = shm.control.operations["shm.open"](shm.peer, [lease_id, one_byte("file")])

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(handed.fds[2], b"x", 0)
    for fd in handed.fds:
        os.close(fd)


def test_file_that_became_shorter_is_an_error(shm, make_file):
    file = make_file(np.ones(8 * MIB // 4, np.uint8))
    region = shm.register("file", file)
    grant = shm.grant(region=region)
    os.ftruncate(file.fd, MIB)

    with pytest.raises(TransferError, match="file of owner/file ends too early"):
        shm.read([(0, 2 * MIB)], grant=grant)
    with pytest.raises(TransferError):
        shm.read([(MIB - 1, 2)], grant=grant, verify=True)
    shm.read([(0, MIB)], grant=grant)


def test_lease_is_looked_at_when_a_file_is_read_too(shm, make_file):
    region = shm.register("file", make_file(np.ones(4096, np.uint8)))
    grant = shm.grant(region=region)
    shm.read([(0, 1)], grant=grant)
    shm.pool[:] = 0

    shm.gate.end(grant)

    with pytest.raises(LeaseEnded):
        shm.read([(0, 100)], grant=grant)
    assert not shm.pool.any()


def test_open_file_is_closed_when_the_last_who_reads_it_has_ended(shm, make_file):
    region = shm.register("file", make_file(np.ones(4096, np.uint8)))
    before = shm.open_files()
    shm.read([(0, 1)], grant=shm.grant(region=region))
    (opened,) = shm.link._opened.values()
    assert opened.hold()

    shm.link.close()
    assert os.fstat(opened._fd).st_size == 4096
    opened.release()
    del opened

    assert shm.open_files() == before


def test_region_that_is_closed_cannot_be_held_any_more(shm):
    shm.read([(0, 1)])
    (opened,) = shm.link._opened.values()

    shm.link.close()

    assert not opened.hold()


# The library


def test_library_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(moving, "_READ", "stafette_read_of_tomorrow")
    moving.load.cache_clear()

    assert moving.load() is None

    moving.load.cache_clear()


def test_transport_works_without_the_library(make_world, monkeypatch):
    monkeypatch.setattr(moving, "load", lambda: None)
    world = make_world("shm")

    world.read([(5, 100_000)])

    assert np.array_equal(world.pool[5:100_005], world.theirs[5:100_005])


# Between processes


def test_owner_that_is_killed_in_the_middle_leaves_right_bytes_or_an_error(
    start_owner, make_reader
):
    size = 64 * MIB
    owner = start_owner("shm", size)
    agent, pool = make_reader("shm", size)
    agent.add_peer(owner.metadata)
    lease = agent.accept(owner.ticket())
    everything = Extents.of("pool", [(0, size)])
    assert agent.read(everything, everything, lease).wait(30.0)
    outcomes = set()

    pool[:] = 0
    transfers = [agent.read(everything, everything, lease) for _ in range(6)]
    while not any(transfer.telemetry().moved_bytes for transfer in transfers):
        time.sleep(0)
    owner.kill()

    for transfer in transfers:
        assert transfer.wait_settled(30.0)
        outcomes.add(transfer.poll())
        if transfer.poll() is TransferState.FAILED:
            assert isinstance(transfer.error, PeerLost)
    if TransferState.DONE in outcomes:
        assert np.array_equal(pool, owner.content(size))
    assert outcomes <= {TransferState.DONE, TransferState.FAILED}
    after = pool.copy()
    time.sleep(0.05)
    assert np.array_equal(pool, after)


def test_memory_of_an_owner_that_is_dead_is_unmapped_with_the_link(
    start_owner, make_reader, eventually
):
    owner = start_owner("shm", 4 * MIB)
    agent, pool = make_reader("shm", 4 * MIB)
    agent.add_peer(owner.metadata)
    lease = agent.accept(owner.ticket())
    part = Extents.of("pool", [(0, 100)])
    assert agent.read(part, part, lease).wait(30.0)
    assert is_mapped(owner.memory_name)

    owner.kill()

    eventually(lambda: not is_mapped(owner.memory_name))
    with pytest.raises(TransferError):
        agent.read(part, part, lease).wait(30.0)


def is_mapped(name: str) -> bool:
    with open("/proc/self/maps") as maps:
        return any(name in line for line in maps)


def test_sealed_memory_of_another_process_cannot_be_written(start_owner, make_reader):
    owner = start_owner("shm", 4 * MIB)
    agent, _ = make_reader("shm", 4 * MIB)
    agent.add_peer(owner.metadata)
    lease = agent.accept(owner.ticket())

    control = agent._peers.get("owner").control
    _, fds = control.call_fds("shm.open", [lease.id, one_byte("pool")], 10.0)

    for fd in fds:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 8, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        mmap.mmap(fd, 8, prot=mmap.PROT_READ).close()
        os.close(fd)
