"""The traffic of prefill and decode apart counts what its readers see, and names the way."""

import asyncio
import json
import random
from dataclasses import replace

import pytest

from benchmarks.serving.disagg import APART, MOCK, TOGETHER, WORKERS, share
from benchmarks.serving.disagg_traffic import run
from benchmarks.serving.front import Front
from benchmarks.serving.overhead import script

SHAPE = replace(MOCK, streams=2, stream_tokens=5, long_prompt=512, long_every_s=60.0)


async def traffic(addresses: dict[str, str]):
    front = Front("test")
    try:
        await front.follow(addresses)
        return await run(front, SHAPE, random.Random(0))
    finally:
        await front.close()


@pytest.mark.parametrize(("way", "handed_over"), [(TOGETHER, False), (APART, True)])
def test_every_gap_of_every_stream_is_seen_whichever_way_it_is_served(way, handed_over):
    with script("disagg_mocks.py", *WORKERS[way]) as (said, _):
        seen = asyncio.run(traffic(json.loads(said)))

    assert len(seen.gaps_ms) == 2 * 4
    assert min(seen.gaps_ms) >= 0
    assert len(seen.first_ms) == 1
    assert (seen.handed_over > 0) == handed_over


def test_share_is_a_value_that_was_seen():
    assert share([3.0, 1.0, 2.0], 0.5) == 2.0
    assert share([3.0, 1.0, 2.0], 1.0) == 3.0
