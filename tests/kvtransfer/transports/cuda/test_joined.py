"""Memory of one rank that another rank's process registers: it is where the maker's is."""

import ctypes

import pytest

from stafette.kvtransfer.buffers import Shape, region_of
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.transports.cuda.driver import CudaDriver
from stafette.kvtransfer.transports.cuda.exports import Export, export
from stafette.kvtransfer.transports.cuda.joined import Shared, join, share

KIB = 1024


@pytest.fixture
def joined(machine, make_library):
    """The maker's array on GPU 1, and what another process makes of what it tells."""
    array = machine.allocate(64 * KIB)
    maker, other = (CudaDriver(make_library()) for _ in range(2))
    shared = share(array.ctypes.data + 4 * KIB, 8 * KIB, 1, maker)
    told = Shared(**{"export": list(shared.export), "nbytes": shared.nbytes})
    return array, join(told, other), other


def test_what_is_written_there_is_in_the_makers_pool(joined):
    array, memory, _ = joined

    ctypes.memset(memory.address, 7, memory.nbytes)

    assert array[4 * KIB : 12 * KIB].tolist() == [7] * 8 * KIB
    assert not array[: 4 * KIB].any()
    assert not array[12 * KIB :].any()
    assert memory.device == 1


def test_peers_are_told_the_makers_export(joined, machine):
    _, memory, driver = joined

    found = export(driver, region_of(memory, Shape("pool", KIB, 1)))

    assert found == Export.read(memory.exported)
    assert (found.offset, found.uuid) == (4 * KIB, machine.uuids[1])


def test_more_than_was_exported_is_not_joined(machine, driver):
    array = machine.allocate(KIB)
    shared = share(array.ctypes.data, KIB, 0, driver)

    with pytest.raises(MalformedMessage, match=r"bytes 0..1025"):
        join(Shared(shared.export, KIB + 1), driver)
