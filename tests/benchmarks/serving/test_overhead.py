"""Whoever is on the way, the client counts every token, and the processes are known."""

import asyncio

import psutil
import pytest

from benchmarks.serving.load import one_by_one, together
from benchmarks.serving.measuring import CLIENTS, MARK, MEASURES
from benchmarks.serving.overhead import start


@pytest.mark.parametrize(("name", "num_processes"), [("stafette", 2), ("canned", 1)])
def test_every_token_is_counted_whatever_is_on_the_way(name, num_processes):
    with start(name, 0.0) as running:
        one = asyncio.run(one_by_one(running.port, MARK, 3, 4))
        many, _ = asyncio.run(together(running.port, MARK, 4, 2, 50))
        spent = running.cpu_s()

    assert [answer.tokens for answer in one] == [4] * 3
    assert [answer.tokens for answer in many] == [50] * 8
    assert spent > 0
    assert len(running.processes) == num_processes
    assert not any(psutil.pid_exists(process.pid) for process in running.processes)


def test_client_asks_only_for_answers_that_are_canned():
    with start("canned", 0.0) as running:
        answers, _ = asyncio.run(together(running.port, MARK, CLIENTS, 1, 200))

    assert [answer.tokens for answer in answers] == [200] * CLIENTS
    assert len(MEASURES) == 4
