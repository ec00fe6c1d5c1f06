"""Several frontends' requests as one window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.errors import MalformedMessage
from stafette.platform.planner.running.merging import Merged, read_news
from stafette.platform.serving.traffic import TrafficBook

MOVES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["arrive", "ask", "lose", "reborn", "window"])),
    max_size=60,
)


def answer(book, question, waiting=0):
    return [*map(plain, book.news(None if question is None else list(question))), waiting]


def plain(rows):
    return [list(row) if isinstance(row, tuple) else row for row in rows]


@given(MOVES)
def test_each_request_is_seen_exactly_once_whatever_answers_are_lost(moves):
    merged, books = Merged(), {0: TrafficBook(), 1: TrafficBook(), 2: TrafficBook()}
    lives = dict.fromkeys(books, 1)
    arrived = seen = number = 0
    numbers = []
    for who, move in moves:
        life, book = (f"f{who}", lives[who]), books[who]
        merged.meet(life, new=True)
        if move == "arrive":
            book.arrivals += 1
            book.started.add((number, 0))
            number += 1
            arrived += 1
        elif move == "ask":
            merged.take(life, answer(book, merged.question(life)))
        elif move == "lose":  # it was answered, but nobody heard it
            answer(book, merged.question(life))
        elif move == "reborn":
            merged.take(life, answer(book, merged.question(life)))
            lives[who], books[who] = lives[who] + 1, TrafficBook()
            merged.keep([(f"f{i}", lives[i]) for i in books])
        else:
            window = merged.window()
            seen += window.arrivals
            numbers += [started.prompt_tokens for started in window.started]
    for who, book in books.items():
        life = (f"f{who}", lives[who])
        merged.meet(life, new=True)
        merged.take(life, answer(book, merged.question(life)))
    window = merged.window()
    seen += window.arrivals
    numbers += [started.prompt_tokens for started in window.started]

    assert seen == arrived
    assert sorted(numbers) == list(range(number))


def test_what_an_old_frontend_saw_before_the_planner_began_is_no_burst():
    merged, book = Merged(), TrafficBook()
    book.arrivals = 5_000
    merged.meet(("f", 1), new=False)

    merged.take(("f", 1), answer(book, merged.question(("f", 1)), waiting=3))
    before = merged.window().arrivals
    book.arrivals += 2
    merged.take(("f", 1), answer(book, merged.question(("f", 1)), waiting=1))

    assert (before, merged.window().arrivals, merged.waiting) == (0, 2, 1)
    merged.keep([])
    assert merged.waiting == 0


@pytest.mark.parametrize(
    "told",
    [
        None,
        [[0, 0, 0], [], []],
        [[0, 0], [], [], 0],
        [[0, 0, 0], [[1]], [], 0],
        [[0, 0, 0], [], [[1, 1, 1, None, 0.0]], 0],
        [[0, 0, 0], [], [], -1],
    ],
)
def test_what_is_no_news_is_malformed(told):
    with pytest.raises(MalformedMessage):
        read_news(told)
