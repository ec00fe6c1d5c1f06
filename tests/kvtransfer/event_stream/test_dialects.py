"""What our workers and stock vLLM ones send, and what is no message of theirs."""

import msgpack
import pytest

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.event_stream.dialects import dialect_of
from stafette.kvtransfer.events import AllCleared, EventBatch, encode


def test_a_workers_batch_is_read():
    batch = EventBatch("w", 7, 3, 1.0, (AllCleared(),))

    assert dialect_of("stafette", "w").read(3, encode(batch)) == batch


@pytest.mark.parametrize(("worker_id", "number"), [("v", 3), ("w", 4)])
def test_a_batch_of_another_worker_or_number_is_malformed(worker_id, number):
    data = encode(EventBatch(worker_id, 7, 3, 1.0, ()))

    with pytest.raises(MalformedMessage):
        dialect_of("stafette", "w").read(number, data)


def vllm(timestamp: float) -> bytes:
    return msgpack.packb([timestamp, [["AllBlocksCleared"]], 0])


def test_vllm_batches_are_numbered_from_one():
    dialect = dialect_of("vllm", "w")

    assert dialect.read(0, vllm(1.0)) == EventBatch("w", 1, 1, 1.0, (AllCleared(),))
    assert [dialect.request(start) for start in (0, 1, 2, 5)] == [0, 0, 0, 3]  # the one before too


@pytest.mark.parametrize(
    ("told", "lives"),
    [
        ([(5, 1.0), (6, 1.0), (7, 2.0)], [1, 1, 1]),
        ([(5, 1.0), (6, 2.0), (5, 1.0), (6, 2.0), (7, 3.0)], [1, 1, 1, 1, 1]),  # repeated
        ([(5, 1.0), (0, 2.0), (1, 3.0)], [1, 2, 2]),  # restarted
        ([(0, 1.0), (0, 2.0), (0, 3.0)], [1, 2, 3]),
    ],
)
def test_a_number_that_went_back_while_time_went_on_is_a_new_life_of_vllm(told, lives):
    dialect = dialect_of("vllm", "w")

    assert [dialect.read(number, vllm(time)).epoch for number, time in told] == lives


def test_an_unknown_dialect_lists_the_known_ones():
    with pytest.raises(InvalidValue, match="dialect = 'klingon': must be one of stafette, vllm"):
        dialect_of("klingon", "w")
