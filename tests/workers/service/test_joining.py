"""What waits for a slow reader is read in one go, and says the same."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.strict import unpack
from stafette.workers.batch import TokenLogprobs
from stafette.workers.errors import WorkerLost
from stafette.workers.request import OutputDelta
from stafette.workers.service import frames
from stafette.workers.service.deliveries import Deliveries
from stafette.workers.service.inbox import Inbox
from stafette.workers.service.joining import joined
from stafette.workers.service.outbox import Outbox


def delta(*token_ids: int, text: str = "", **more) -> OutputDelta:
    return OutputDelta("r", 0, list(token_ids), text, **more)


def score(token: int) -> TokenLogprobs:
    return TokenLogprobs(token, -1.0, 1, {})


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1), st.booleans())
def test_deltas_together_say_what_they_said_one_by_one(steps, scored):
    deltas = [
        delta(*ids, text="x" * len(ids), logprobs=list(map(score, ids)) if scored else None)
        for ids in steps
    ]

    whole = joined(deltas)

    assert whole.token_ids == [token for ids in steps for token in ids]
    assert len(whole.text) == len(whole.token_ids)
    if scored:
        assert [each.token_id for each in whole.logprobs or []] == whole.token_ids


def test_the_last_one_tells_how_it_ended_and_the_first_one_what_was_scored():
    first = delta(1, prompt_logprobs=[score(9)], num_cached_tokens=16)
    last = delta(2, finish_reason="stop", stop_reason=2)

    whole = joined([first, last])

    assert (whole.finish_reason, whole.stop_reason) == ("stop", 2)
    assert whole.prompt_logprobs == [score(9)]
    assert whole.num_cached_tokens == 16


async def test_deltas_of_one_request_that_wait_are_sent_as_one():
    outbox, sent = Outbox(1 << 20), []

    async def write(message: bytes) -> None:
        sent.append(unpack(message, 1 << 20))

    for token in (1, 2, 3):
        outbox.put_delta(7, delta(token))
        outbox.put_delta(8, delta(token + 10))
    writer = asyncio.create_task(outbox.run(write))
    while not sent:
        await asyncio.sleep(0)
    writer.cancel()

    assert sent == [[frames.STEP, [[7, [1, 2, 3], 0], [8, [11, 12, 13], 0]]]]


async def test_inbox_gives_what_has_come_and_then_the_error():
    inbox = Inbox(Deliveries())
    reader = asyncio.create_task(inbox.next())
    await asyncio.sleep(0)

    inbox.put(delta(1))
    inbox.put(delta(2))
    inbox.fail(WorkerLost("worker", "w", "it died"))

    assert [each.token_ids for each in await reader] == [[1], [2]]
    for _ in range(2):
        with pytest.raises(WorkerLost):
            await inbox.next()
