"""Server-sent events, however they arrive."""

import pytest

from stafette.platform.bench.events import EventReader

STREAM = (
    b": keep\n\ndata: one\r\n\r\nevent: x\ndata: two\ndata:  three\n\ndata:four\r\rdata: five\n\n"
)
DATA = [b"one", b"two\n three", b"four", b"five"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_pieces_of_any_size_bring_the_same_events(size):
    reader = EventReader()

    found = [
        data for at in range(0, len(STREAM), size) for data in reader.feed(STREAM[at : at + size])
    ]

    assert found == DATA


def test_an_event_that_is_not_whole_waits():
    reader = EventReader()

    assert reader.feed(b"data: a\n") == []
    assert reader.feed(b"\n") == [b"a"]
