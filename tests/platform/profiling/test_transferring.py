"""Blocks are read out of another process, and what that takes is in the model."""

from dataclasses import replace

import pytest

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.document import Document
from stafette.platform.profiling.points import Point
from stafette.platform.profiling.transferring import missing, open_transfers, sizes
from stafette.workers.mocker.speed_profile import Profile


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_blocks_are_read_from_another_process(transport):
    with open_transfers(transport, block_bytes=4096) as transfers:
        point = transfers.measure(16, samples=3)

    assert (point.name, point.samples) == (f"transfer 0.0655 MB by {transport}", 3)
    assert 0 < point.low_ms <= point.ms <= point.high_ms


def test_a_gigabyte_a_second_is_a_megabyte_a_millisecond():
    """2 ms before the first byte, and half a gigabyte a second."""
    points = tuple(
        Point(kind="transfer", ms=2.0 + 2.0 * size, nbytes=size * 1_000_000, transport="shm")
        for size in (1, 10, 100)
    )
    document = Document(subject={}, points=points)

    assert document.model.transfer_gb_s == pytest.approx(0.5)
    assert document.model.transfer_latency_ms == pytest.approx(2.0)
    assert document.model.step_ms == Profile().step_ms


def test_without_a_transfer_the_model_keeps_what_it_was_told():
    told = Profile(transfer_gb_s=7.0)
    points = (Point(kind="decode", ms=10.0, batch=1, kv_tokens=100),)

    assert Document(subject={}, points=points, base=told).model.transfer_gb_s == 7.0


def test_a_transfer_is_kept_in_the_file_as_it_was():
    point = Point(kind="transfer", ms=2.0, nbytes=4096, transport="tcp")

    assert Point.of(point.to_dict()) == point


def test_what_is_known_is_not_measured_again():
    known = Point(kind="transfer", ms=2.0, nbytes=4 * 1_000, transport="shm")

    assert missing([known], "shm", 1_000) == [1, 16, 64, 256]
    with pytest.raises(InvalidSetting, match="the file has shm"):
        missing([known], "tcp", 1_000)
    assert missing([replace(known, kind="decode", transport="")], "tcp", 1_000) == sizes(1_000)


def test_large_blocks_are_read_one_at_a_time():
    assert sizes(100 << 20) == [1]
    assert sizes(1 << 20) == [1, 4, 16, 64]
