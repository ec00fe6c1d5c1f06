"""What is told of a GPU's memory, and what is not believed."""

import pytest

from stafette.kvtransfer.buffers import Shape, region_of
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.transports.cuda.exports import Export, export

KIB = 1024


def test_region_within_an_allocation_is_told_with_its_offset(machine, driver, fake_tensor):
    array = machine.allocate(64 * KIB)
    region = region_of(fake_tensor(array[4 * KIB : 8 * KIB], device=1), Shape("pool", 0, 1))

    found = export(driver, region)

    assert (found.offset, found.nbytes) == (4 * KIB, 64 * KIB)
    assert found.uuid == machine.uuids[1]
    assert Export.read(found.pack()) == found


@pytest.mark.parametrize(
    "packed",
    [
        None,
        [],
        [b"x" * 63, 64, 0, b"u" * 16],
        [b"x" * 64, 64, 0, b"u" * 15],
        [b"x" * 64, 64, -1, b"u" * 16],
        [b"x" * 64, 1 << 63, 0, b"u" * 16],
        [b"x" * 64, 64, True, b"u" * 16],
    ],
)
def test_anything_else_is_malformed(packed):
    with pytest.raises(MalformedMessage):
        Export.read(packed)


def test_region_beyond_its_allocation_is_not_read():
    found = Export(b"x" * 64, 100, 60, b"u" * 16)

    found.check(40)
    with pytest.raises(MalformedMessage, match=r"bytes 60..101"):
        found.check(41)
