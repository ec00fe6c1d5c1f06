"""A target's books: queue, running sequences and blocks, from reservation to the end."""

import hashlib
import random

import pytest

from stafette.router.errors import InvalidValue, UnknownReservation
from stafette.router.load import IDLE, Load, LoadConfig, LoadReport, Stay


def chain_of(name: str) -> bytes:
    return b"".join(
        hashlib.blake2b(name[: end + 1].encode(), digest_size=16).digest()
        for end in range(len(name))
    )


def load(**options) -> Load:
    return Load(block_size=10, config=LoadConfig(**options))


def stay(uncached=100, ms=1_000.0, chain="", computes=True) -> Stay:
    return Stay(200, uncached, ms, chain_of(chain), computes)


def test_prompts_queue_behind_each_other():
    books = load()
    books.reserve("a", stay(), now=10.0)
    books.reserve("b", stay(ms=500.0), now=10.0)

    view = books.view(10.0)

    assert (view.queue_ms, view.queued_tokens) == (1_500.0, 200)
    assert (view.waiting, view.running) == (2, 0)


def test_queue_shrinks_as_time_goes_by_but_only_by_its_first_prompt():
    books = load()
    books.reserve("a", stay(), now=10.0)
    books.reserve("b", stay(ms=500.0), now=10.0)

    assert books.view(10.25).queue_ms == 1_250.0
    assert books.view(10.25).queued_tokens == 175
    assert books.view(99.0).queue_ms == 500.0  # `a` is late: `b` has not begun
    assert books.view(99.0).charged_tokens == 200


def test_first_token_takes_a_prompt_out_of_the_queue():
    books = load()
    books.reserve("a", stay(), now=10.0)
    books.reserve("b", stay(ms=500.0), now=10.0)

    books.first_token("a", now=11.0)
    books.first_token("a", now=11.0)

    view = books.view(11.25)
    assert (view.queue_ms, view.waiting, view.running) == (250.0, 1, 1)
    assert view.kv_tokens == 200


def test_prompt_that_is_computed_elsewhere_is_awaited_but_takes_no_time():
    books = load()
    books.reserve("a", stay(chain="xy", computes=False), now=0.0)

    view = books.view(0.0)

    assert (view.queue_ms, view.queued_tokens) == (0.0, 0)
    assert (view.waiting, view.used_blocks) == (1, 2)
    books.first_token("a", 1.0)
    assert books.view(1.0).running == 1


def test_request_that_leaves_the_middle_of_the_queue_leaves_no_gap():
    books = load()
    for name in ("a", "b", "c"):
        books.reserve(name, stay(), now=0.0)

    books.free("b", now=0.5)

    assert books.view(0.5).queue_ms == 1_500.0


def test_next_prompt_begins_when_the_first_one_is_given_up():
    books = load()
    books.reserve("a", stay(), now=0.0)
    books.reserve("b", stay(), now=0.0)

    books.free("a", now=0.8)

    assert books.view(0.8).queue_ms == 1_000.0
    assert books.view(1.0).queue_ms == 800.0


def test_shared_blocks_are_in_use_once():
    books = load()
    books.reserve("a", stay(chain="abcd"), now=0.0)
    books.reserve("b", stay(chain="abxyz"), now=0.0)

    assert books.view(0.0).used_blocks == 7
    assert books.shared(chain_of("abx!")) == 3
    books.free("a", 1.0)
    assert books.view(1.0).used_blocks == 5


def test_answers_grow_by_whole_blocks():
    books = load()
    books.reserve("a", stay(chain="ab"), now=0.0)
    books.first_token("a", 1.0)

    counts = []
    for tokens in (1, 10, 11, 5, 30):
        books.progress("a", tokens)
        counts.append(books.view(1.0).used_blocks)

    assert counts == [3, 3, 4, 4, 5]
    assert books.view(1.0).kv_tokens == 230
    books.free("a", 2.0)
    assert books.view(2.0).used_blocks == 0
    assert books.view(2.0).kv_tokens == 0


def test_nothing_expires_while_a_request_lives():
    books = load()
    books.reserve("a", stay(chain="abc"), now=0.0)
    books.first_token("a", 1.0)

    view = books.view(1e9)

    assert (view.running, view.used_blocks) == (1, 3)


def test_freeing_twice_is_an_error():
    books = load()
    books.reserve("a", stay(), 0.0)
    books.free("a", 1.0)

    with pytest.raises(UnknownReservation, match="no request a"):
        books.free("a", 1.0)


def test_worker_that_has_more_to_do_than_we_know_is_believed():
    books = load()
    books.reserve("a", stay(), now=0.0)

    books.report(LoadReport(at=5.0, queued_tokens=500, running=7, used_blocks=90))

    view = books.view(5.0)
    assert view.queued_tokens == 500
    assert (view.running, view.used_blocks) == (7, 90)


def test_worker_that_has_less_to_do_than_we_think_is_believed():
    books = load()
    books.reserve("a", stay(), now=0.0)

    books.report(LoadReport(at=5.0, queued_tokens=0, running=1, used_blocks=20))

    assert books.view(5.0).queue_ms == 0.0
    assert books.view(5.0).charged_tokens == 100


def test_what_was_sent_too_late_for_a_report_is_added_to_it():
    books = load(report_lag_s=0.5)
    books.reserve("old", stay(), now=0.0)
    books.reserve("new", stay(uncached=40), now=4.8)

    books.report(LoadReport(at=5.0, queued_tokens=300, running=0, used_blocks=50))

    view = books.view(5.0)
    assert view.queued_tokens == 340
    assert view.used_blocks == 54


def test_tokens_that_others_queued_take_the_time_that_is_given():
    books = load()
    books.report(LoadReport(at=5.0, queued_tokens=300, running=0, used_blocks=0))

    assert books.view(5.0, ms_per_token=2.0).queue_ms == 600.0


def test_old_report_counts_no_more_and_an_older_one_never():
    books = load(report_valid_s=10.0)
    books.report(LoadReport(at=5.0, queued_tokens=300, running=0, used_blocks=0))
    books.report(LoadReport(at=4.0, queued_tokens=900, running=0, used_blocks=0))

    assert books.view(14.0).queued_tokens == 300
    assert books.view(15.1).queued_tokens == 0


def test_utilization_is_the_share_of_time_with_prompts_to_compute():
    books = load()
    now = 0.0
    for number in range(400):  # half of each second busy
        books.reserve(str(number), stay(), now)
        books.first_token(str(number), now + 0.5)
        books.free(str(number), now + 0.5)
        now += 1.0

    assert books.view(now).utilization == pytest.approx(0.5, abs=0.02)
    assert books.view(now + 1e4).utilization == pytest.approx(0.0, abs=0.001)


def test_clock_that_goes_backwards_breaks_nothing():
    books = load()
    books.reserve("a", stay(), now=10.0)

    view = books.view(3.0)

    assert view.queue_ms == 1_000.0
    assert 0.0 <= view.utilization <= 1.0
    books.free("a", 2.0)
    assert books.view(2.0).requests == 0


def test_books_are_empty_after_any_life():
    rng = random.Random(0)
    books, alive, now = load(), [], 0.0
    for number in range(3_000):
        now += rng.random()
        move = rng.random()
        if move < 0.4 or not alive:
            name = "".join(rng.choice("ab") for _ in range(rng.randrange(9)))
            books.reserve(str(number), stay(rng.randrange(9), 7.3, name, rng.random() < 0.8), now)
            alive.append(str(number))
        elif move < 0.6:
            books.first_token(rng.choice(alive), now)
        elif move < 0.8:
            books.progress(rng.choice(alive), rng.randrange(100))
        else:
            books.free(alive.pop(rng.randrange(len(alive))), now)
        assert books.view(now).queue_ms >= 0
        assert len(books.request_ids) == len(alive)
    for name in alive:
        books.free(name, now)

    view = books.view(now)
    assert view == type(IDLE)(utilization=view.utilization)


def test_bad_configuration_names_its_field():
    with pytest.raises(InvalidValue, match="load.report_lag_s = -1"):
        LoadConfig(report_lag_s=-1)
