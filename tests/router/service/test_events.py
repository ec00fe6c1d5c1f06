"""What workers hold is known from their events: by ZeroMQ from real processes, or sent by HTTP."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stafette.router.hashing import Hashers
from stafette.router.service.client import Refused

PUBLISHER = Path(__file__).with_name("publisher_process.py")
KEY = "a secret of the whole cluster"
PROMPT = list(range(1, 161))
HASHES = Hashers(KEY, 16).of("m").hash_blocks(PROMPT)


class Publisher:
    def __init__(self, worker: str, epoch: int = 1) -> None:
        settings = {"worker": worker, "epoch": epoch, "key": KEY, "block_size": 16, "model": "m"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PUBLISHER), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        address, replay, fingerprint = json.loads(self._process.stdout.readline())
        events = {"address": address, "replay_address": replay}
        self.spec = {"model": "m", "fingerprint": fingerprint, "events": events, "epoch": epoch}

    def store(self, tokens) -> int:
        self._process.stdin.write(json.dumps(tokens) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def start_publisher():
    started = []

    def start(*args, **options) -> Publisher:
        started.append(Publisher(*args, **options))
        return started[-1]

    yield start
    for publisher in started:
        publisher.kill()


async def test_workers_of_ours_are_followed_and_missed_when_they_die(
    serve, start_publisher, eventually
):
    served = await serve(events={"lost_after_s": 0.5})
    workers = {name: start_publisher(name) for name in ("a", "b")}
    for name, worker in workers.items():
        await served.client.register(name, 16, **worker.spec)
    workers["b"].store(PROMPT)

    async def chosen():
        return await served.client.select("r", PROMPT, model="m", reserve=False)

    async def follows_the_blocks() -> bool:
        selected = await chosen()
        return (selected.decode, selected.cached_tokens) == ("b", 159)

    async def told() -> dict:
        return {one["worker"]: one for one in (await served.client.workers())["workers"]}

    async def is_missed() -> bool:
        return not (await told())["b"]["healthy"]

    await eventually(follows_the_blocks)
    workers["b"].kill()
    await eventually(is_missed)
    assert (await chosen()).decode == "a"
    found = await told()
    assert (found["b"]["healthy"], found["b"]["why"]) == (False, ["its events are silent"])
    assert found["b"]["cached_blocks"] == 0

    again = start_publisher("b", epoch=2)
    again.store(PROMPT)
    await served.client.register("b", 16, **again.spec)
    await eventually(follows_the_blocks)


def stored(parent, hashes, hexed):
    run = b"".join(hashes)
    parent = parent.hex() if hexed and parent else parent
    return ["stored", parent, 16, run.hex() if hexed else run, "device"]


@pytest.mark.parametrize("hexed", [False, True])
async def test_events_may_be_sent_by_http(serve, hexed):
    served = await serve(key=KEY)
    fingerprint = Hashers(KEY, 16).of("m").fingerprint
    options = {"model": "m", "fingerprint": fingerprint, "pushes_events": True}
    await served.client.register("a", 16, **options)
    batch = {"worker": "a", "epoch": 3}

    async def cached() -> int:
        selected = await served.client.select("r", PROMPT, model="m", reserve=False)
        return selected.cached_tokens

    first = {"seq": 1, "timestamp": 1.0, "events": [stored(None, HASHES[:4], hexed)]}
    second = {"seq": 2, "timestamp": 2.0, "events": [stored(HASHES[3], HASHES[4:6], hexed)]}
    assert (await served.client.post("events", **batch, **first))["applied"]
    assert await cached() == 64
    assert (await served.client.post("events", **batch, **second))["applied"]
    again = await served.client.post("events", **batch, **second)

    assert (again["applied"], again["seq"], await cached()) == (False, 2, 96)
    with pytest.raises(Refused, match="batch 3 is the next") as gap:
        await served.client.post("events", **batch, seq=5, timestamp=3.0, events=[])
    assert (gap.value.status, gap.value.code) == (409, "event_gap")
    whole = {"seq": 5, "timestamp": 3.0, "snapshot": True}
    await served.client.post("events", **batch, **whole, events=[stored(None, HASHES[:2], hexed)])
    assert await cached() == 32
    await served.client.post(
        "events", worker="a", epoch=4, seq=1, timestamp=0.5, events=[["cleared"]]
    )
    assert await cached() == 0


async def test_a_new_registration_begins_a_new_life(serve):
    served = await serve(key=KEY)
    fingerprint = Hashers(KEY, 16).of("m").fingerprint
    options = {"model": "m", "fingerprint": fingerprint, "pushes_events": True}
    first = {"seq": 1, "timestamp": 9.0, "events": [stored(None, HASHES, False)]}
    await served.client.register("a", 16, **options, epoch=1)
    await served.client.post("events", worker="a", epoch=1, **first)

    await served.client.register("a", 16, **options, epoch=2)

    (worker,) = (await served.client.workers())["workers"]
    assert worker["cached_blocks"] == 0
    with pytest.raises(Refused, match="epoch 2 of this worker is known"):
        await served.client.post("events", worker="a", epoch=1, **first)
    assert (await served.client.post("events", worker="a", epoch=2, **first))["applied"]


async def test_a_worker_that_leaves_takes_what_it_held_with_it(serve):
    served = await serve(key=KEY)
    await served.client.register("a", 16, pushes_events=True, model="m")

    answer = await served.client.post("unregister", worker="a")

    assert answer == {"worker": "a", "forgotten_blocks": 0}
    assert (await served.client.workers())["workers"] == []
    with pytest.raises(Refused, match="a is not registered"):
        await served.client.unregister("a")
