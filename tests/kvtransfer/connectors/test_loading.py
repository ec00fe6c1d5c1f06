"""A load's handle: what has arrived, how it ends, and when its blocks are nobody's any more."""

from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.connectors.connector import LoadOrder
from stafette.kvtransfer.connectors.loading import Load, failed_load
from stafette.kvtransfer.errors import TransferCancelled, TransferError


def order(count: int, first: int = 0) -> LoadOrder:
    hashes = tuple(bytes([i]) * 16 for i in range(count))
    return LoadOrder("r1", first, hashes, tuple(range(100, 100 + count)))


def note(load: Load) -> list[str]:
    """Return a list to which the load's two ends are written."""
    seen: list[str] = []
    load.on_ended(lambda _: seen.append("ended"))
    load.on_settled(lambda _: seen.append("settled"))
    return seen


def test_a_load_is_over_when_all_blocks_are_there():
    load = Load(order(3, first=5))
    seen = note(load)

    load.arrive(6, 8)
    assert (load.num_arrived, load.ended) == (0, False)
    load.arrive(5, 6)

    assert load.num_arrived == 3
    assert load.error is None
    assert load.failed_blocks == ()
    assert seen == ["ended", "settled"]
    assert load.wait(0)


def test_blocks_behind_a_gap_cannot_be_used():
    load = Load(order(4))

    load.arrive(0, 1)
    load.arrive(2, 4)
    load.fail(TransferError("enough"))

    assert load.num_arrived == 1
    assert load.failed_blocks == (101, 102, 103)


def test_it_is_settled_when_the_last_write_has_ended():
    load = Load(order(2))
    seen = note(load)
    assert load.begin_write()
    assert load.begin_write()

    load.cancel()
    load.end_write()
    assert seen == ["ended"]
    assert not load.wait_settled(0)
    load.end_write()

    assert seen == ["ended", "settled"]
    assert isinstance(load.error, TransferCancelled)


def test_nothing_may_write_and_nothing_counts_once_it_has_ended():
    load = failed_load(order(2), "no blocks")

    assert not load.begin_write()
    load.arrive(0, 2)
    load.limit(0, TransferError("late"))
    load.fail(TransferError("later"))

    assert load.num_arrived == 0
    assert str(load.error) == "no blocks"


def test_a_limit_ends_it_as_soon_as_what_lies_before_is_there():
    load, short = Load(order(4)), TransferError("only two")

    load.limit(2, short)
    load.limit(3, TransferError("does not raise the limit"))
    load.arrive(1, 2)
    assert not load.ended
    load.arrive(0, 1)

    assert load.error is short
    assert load.num_arrived == 2


def test_a_limit_of_nothing_ends_it_at_once():
    load, none = Load(order(4, first=7)), TransferError("none")

    load.limit(3, none)

    assert load.ended
    assert load.error is none


def test_a_callback_that_comes_late_is_called_at_once_and_one_that_fails_harms_no_other(caplog):
    load = Load(order(1))
    seen: list[str] = []
    load.on_ended(lambda _: 1 / 0)
    load.on_ended(lambda _: seen.append("first"))

    load.arrive(0, 1)
    load.on_ended(lambda _: seen.append("late"))
    load.on_settled(lambda _: seen.append("settled"))

    assert seen == ["first", "late", "settled"]
    assert "ZeroDivisionError" in caplog.text


_moves = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, 7), st.integers(1, 4)),
    st.tuples(st.just("limit"), st.integers(0, 8), st.just(0)),
    st.tuples(st.just("begin"), st.just(0), st.just(0)),
    st.tuples(st.just("end"), st.just(0), st.just(0)),
    st.tuples(st.just("fail"), st.just(0), st.just(0)),
)


@given(st.lists(_moves, max_size=30))
def test_whatever_happens_it_ends_once_and_settles_once_and_afterwards_nothing_changes(moves):
    load, writes, wanted, there = Load(order(8)), 0, 8, set()
    seen = note(load)
    for move, place, count in moves:
        over = load.ended
        match move:
            case "arrive":
                end = min(8, place + count)
                load.arrive(place, end)
                there |= set() if over else set(range(place, end))
            case "limit":
                load.limit(place, TransferError("limit"))
                wanted = wanted if over else min(wanted, place)
            case "begin":
                assert load.begin_write() is not over
                writes += not over
            case "end" if writes:
                load.end_write()
                writes -= 1
            case "fail":
                load.fail(TransferError("fail"))
        complete = set(range(wanted)) <= there
        assert load.ended == (over or complete or move == "fail")
        assert load.settled == (load.ended and not writes)
        assert load.num_arrived == next(i for i in range(9) if i not in there)
        assert seen == ["ended"] * load.ended + ["settled"] * load.settled
