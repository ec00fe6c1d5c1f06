"""What a frontend notes of its answers, and how readers get each row once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.errors import MalformedMessage
from stafette.platform.serving.traffic import TrafficBook
from stafette.workers.request import OutputDelta


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def delta(*token_ids, finish_reason=None, cached=0, error=None):
    return OutputDelta(
        request_id="r",
        index=0,
        text="",
        token_ids=list(token_ids),
        finish_reason=finish_reason,
        num_cached_tokens=cached,
        error=error,
    )


def test_an_answer_leaves_its_lengths_and_times():
    clock = Clock()
    book = TrafficBook(clock)

    notes = book.arrive(300)
    clock.now += 0.5
    notes.placed()
    clock.now += 1.0
    notes.see(delta(1, cached=64))
    notes.placed()  # on a second worker: the first wait is what counts
    clock.now += 0.2
    notes.see(delta(2, 3, finish_reason="length"))

    assert book.news([0, 0, 0]) == [
        [1, 1, 1],
        [(300, 64)],
        [(300, 3, 1500.0, pytest.approx(100.0), 500.0)],
    ]


@pytest.mark.parametrize(
    "deltas",
    [
        [],
        [delta(1)],  # its client has left
        [delta(1, finish_reason="error", error="out of memory")],
        [delta(finish_reason="stop")],  # an embedding
    ],
)
def test_what_is_not_answered_is_an_arrival_only(deltas):
    book = TrafficBook()

    notes = book.arrive(10)
    notes.placed()
    for each in deltas:
        notes.see(each)

    (arrivals, _, finished), _, rows = book.news([0, 0, 0])
    assert (arrivals, finished, rows) == (1, 0, [])


@given(st.lists(st.integers(0, 3_000), max_size=8))
def test_a_reader_gets_each_row_once_or_the_latest_that_are_kept(bursts):
    book, known, got = TrafficBook(), [0, 0, 0], []
    sent = 0
    for burst in bursts:
        for _ in range(burst):
            book.started.add((sent, 0))
            sent += 1
        known, started, _ = book.news(known)
        got += [row[0] for row in started]

    assert got == list(range(sent))
    assert len(book.news([0, 0, 0])[1]) == min(sent, 4_096)


@pytest.mark.parametrize("cursor", [3, [], [0, 0], [0, 0, -1], [0, 0, "0"]])
def test_a_cursor_that_is_none_is_malformed(cursor):
    with pytest.raises(MalformedMessage):
        TrafficBook().news(cursor)
