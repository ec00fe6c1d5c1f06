"""How a level is driven: who asks when, and when it is given up."""

import asyncio

import pytest
from tests.platform.bench.played import tokens

from stafette.platform.bench.asking import Manner
from stafette.platform.bench.client import Client, ClientConfig
from stafette.platform.bench.driving import Driver
from stafette.platform.bench.errors import ServerLost
from stafette.platform.bench.load import Conversation, Level, Turn
from stafette.platform.bench.words import COMMON, Speller
from stafette.platform.twin.prompts import Piece


def level(limit, count, due_s=lambda number: 0.0):
    def conversations():
        for number in range(count):
            turn = Turn(pieces=[Piece(number, 4)], output_tokens=2)
            yield Conversation(name=f"q{number}", turns=(turn,), due_s=due_s(number))

    return Level(name="x", load=1, limit=limit, num_requests=count, conversations=conversations)


async def drive(server, level, **config):
    records = []
    client = Client(server.endpoint, ClientConfig(**config))
    driver = Driver(client, Manner(model="tiny"), Speller(COMMON, "x"), records.append)
    try:
        await driver.run(level)
    finally:
        client.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return records


def at_once(records):
    """Return the most requests that ran at the same time."""
    edges = [(each.began_s, 1) for each in records]
    edges += [(each.began_s + each.ended_s, -1) for each in records]
    most = running = 0
    for _, step in sorted(edges):
        running += step
        most = max(most, running)
    return most


async def test_so_many_run_at_once_and_no_more(serve):
    records = await drive(serve(gap_s=0.005), level(limit=3, count=12))

    assert len(records) == 12
    assert at_once(records) == 3


async def test_requests_that_are_due_do_not_wait_for_each_other(serve):
    records = await drive(serve(gap_s=0.05), level(limit=None, count=6))

    assert at_once(records) == 6


async def test_nobody_leaves_before_it_is_due(server):
    due_s = 0.02
    records = await drive(server, level(None, 4, due_s=lambda number: due_s * number))

    assert all(each.began_s >= due_s * each.number for each in records)
    assert all(each.late_s >= 0 for each in records)


async def test_a_level_is_given_up_when_nobody_is_there(serve):
    server = serve(dies_after=5)

    with pytest.raises(ServerLost, match="stopped answering"):
        await drive(server, level(limit=2, count=50))

    assert server.chats < 10


async def test_broken_connections_of_a_server_that_lives_are_counted(serve):
    def play(body):
        if server.chats % 5:
            raise ConnectionResetError
        return tokens(body)

    server = serve(play)

    records = await drive(server, level(limit=1, count=20))

    assert sum(record.ok for record in records) == 4
    assert {record.error.partition(":")[0] for record in records} == {"", "connection"}


async def test_timeouts_of_a_server_that_lives_are_counted(serve):
    slow = serve(gap_s=3.0, models_s=0.2)  # longer than an answer may take: it lives all the same

    records = await drive(slow, level(limit=4, count=8), request_s=0.05)

    assert [record.error for record in records] == ["timeout"] * 8
