"""What process_vm alone does: it knows the owner's process, and tells why it cannot read it."""

import errno
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.errors import AccessDenied, PeerLost, TransportUnavailable
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transport import PeerInfo, Surroundings
from stafette.kvtransfer.transports.process_vm import Process, ProcessVmTransport

MIB = 1 << 20
NOBODY = 65_534


@pytest.fixture
def vm(make_world, native):
    return make_world("process_vm", native)


def peer_with(world, endpoint, epoch=8) -> PeerInfo:
    return PeerInfo("owner", epoch, host_id(), {"process_vm": endpoint})


def unreachable(world, peer) -> str:
    return world.reader.unreachable(peer, world.region.info, world.local)


def test_memory_that_nobody_can_map_is_read(vm):
    vm.read([(3, MIB)])

    assert np.array_equal(vm.pool[3 : MIB + 3], vm.theirs[3 : MIB + 3])


def test_more_ranges_than_one_system_call_takes_are_read(vm):
    ranges = [(i * 512, 500) for i in range(5000)]

    vm.read(ranges)

    rows = vm.pool[: 5000 * 512].reshape(-1, 512)
    assert np.array_equal(rows[:, :500], vm.theirs[: 5000 * 512].reshape(-1, 512)[:, :500])
    assert not rows[:, 500:].any()


def test_process_without_the_mark_is_another_one(vm):
    vm.read([(0, 100)])

    vm.owner.close()  # as a new process under the same number: its mark is not there

    for size in (100, MIB):
        with pytest.raises(PeerLost):
            vm.read([(0, size)])


def test_process_that_has_another_mark_is_not_reachable(vm):
    pid, address, mark = vm.owner.endpoint()

    reason = unreachable(vm, peer_with(vm, [pid, address, bytes(16)]))

    assert reason == "its process is gone"
    assert unreachable(vm, peer_with(vm, [pid, address, mark], epoch=9)) == ""


def test_process_that_is_gone_is_not_reachable(vm):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(30.0)
    _, address, mark = vm.owner.endpoint()

    assert unreachable(vm, peer_with(vm, [child.pid, address, mark])) == "its process is gone"


def test_peer_that_does_not_offer_it_is_not_reachable(vm):
    vm.region.info.hints.clear()

    assert unreachable(vm, vm.peer) == "owner does not offer its private memory"


@pytest.mark.parametrize("endpoint", [None, [], [1, 2], [-1, 0, bytes(16)], [1, 0, b"short"]])
def test_malformed_process_is_not_reachable(vm, endpoint):
    assert "expected" in unreachable(vm, peer_with(vm, endpoint))


def test_process_that_could_not_be_read_is_tried_again_after_a_while(vm):
    now = [0.0]
    around = Surroundings("reader", 1, vm.gate, vm.ledger)
    reader = ProcessVmTransport(around, clock=lambda: now[0])
    pid, address, mark = vm.owner.endpoint()
    peer = peer_with(vm, [pid, address, mark])
    vm.owner._mark.raw = bytes(16)
    assert reader.unreachable(peer, vm.region.info, vm.local)

    vm.owner._mark.raw = mark

    now[0] = 9.0
    assert reader.unreachable(peer, vm.region.info, vm.local)
    now[0] = 11.0
    assert reader.unreachable(peer, vm.region.info, vm.local) == ""


def test_memory_that_is_not_mapped_any_more_is_refused(vm):
    shown = vm.owner._shown[("kv", 1)]
    object.__setattr__(shown, "place", 4096)  # nothing is mapped there

    for size in (100, MIB):
        with pytest.raises(AccessDenied, match="not mapped"):
            vm.read([(0, size)])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_are_told_what_reading_takes():
    script = """
        import os, sys
        from stafette.kvtransfer.transports.same_host import process_memory
        os.setuid(int(sys.argv[1]))
        try:
            process_memory.read_bytes(os.getppid(), 4096, 16)
        except OSError as error:
            print(error.errno, process_memory.reason(error.errno))
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script), str(NOBODY)]

    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert told.startswith(f"{errno.EPERM} ")
    assert "kernel.yama.ptrace_scope" in told
    assert "CAP_SYS_PTRACE" in told


def test_refusal_in_the_middle_speaks_against_the_way_not_the_bytes(vm):
    vm.read([(0, 1)])
    (opened,) = vm.link._opened.values()

    assert isinstance(opened.failed(errno.EPERM), TransportUnavailable)
    assert isinstance(opened.failed(errno.ESRCH), PeerLost)


def test_process_is_told_by_its_number_and_mark(vm):
    process = Process.read(vm.owner.endpoint())

    assert process.pid == os.getpid()
    process.check()


# Between processes


def test_private_memory_of_another_process_is_read(start_owner, make_reader):
    size = 16 * MIB
    owner = start_owner("process_vm", size)
    agent, pool = make_reader("process_vm", size)
    agent.add_peer(owner.metadata)
    everything = Extents.of("pool", [(0, size)])

    assert agent.read(everything, everything, agent.accept(owner.ticket())).wait(30.0)

    assert np.array_equal(pool, owner.content(size))


def test_another_program_in_the_owners_process_is_not_taken_for_it(start_owner, make_reader):
    owner = start_owner("process_vm", MIB)
    agent, pool = make_reader("process_vm", MIB)
    agent.add_peer(owner.metadata)
    peer = agent._peers.get("owner")
    process = Process.read(peer.info.endpoints["process_vm"])
    process.check()

    owner.becomes_another_program()

    with pytest.raises(OSError, match="No such process|Bad address"):
        process.check()


def test_process_that_was_killed_is_noticed(start_owner, make_reader):
    size = 4 * MIB
    owner = start_owner("process_vm", size)
    agent, pool = make_reader("process_vm", size)
    agent.add_peer(owner.metadata)
    lease = agent.accept(owner.ticket())
    everything = Extents.of("pool", [(0, size)])
    assert agent.read(everything, everything, lease).wait(30.0)
    link = agent._peers.get("owner").link("process_vm")
    (opened,) = link._opened.values()
    assert opened.hold()

    owner.kill()

    with pytest.raises(OSError, match="No such process"):
        opened._process.check()
    opened.release()
