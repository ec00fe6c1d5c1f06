"""The benchmark's servers and its client agree on what an answer is."""

import asyncio

import pytest

from benchmarks.serving.frontend import server
from benchmarks.serving.load import one_by_one, together
from benchmarks.serving.measuring import MARK


@pytest.mark.parametrize("name", ["stafette", "asgi"])
def test_every_token_is_counted_whoever_serves(name):
    with server(name, 0.0) as running:
        one = asyncio.run(one_by_one(running.port, MARK, 3, 7))
        many, took = asyncio.run(together(running.port, MARK, 4, 2, 5))

    assert [answer.tokens for answer in one] == [7] * 3
    assert [answer.tokens for answer in many] == [5] * 8
    assert took > 0
    assert not running.processes[0].is_running()
