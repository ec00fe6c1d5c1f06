"""Routers hear of each other's reservations, and forget those of one that is dead."""

import asyncio
from hashlib import blake2b

import msgpack
import pytest
import zmq

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.event_stream import wire
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec
from stafette.router.load import Stay
from stafette.router.request import Request, WorkerSpec
from stafette.router.reservations import Reserved, Summary
from stafette.router.router import KvRouter
from stafette.router.service import gossip as module
from stafette.router.service.client import RouterClient
from stafette.router.service.gossip import Gossip, GossipConfig
from stafette.router.sharing import Sharing

KEY = b"a secret of the whole cluster"
PROMPT = list(range(1, 161))
QUICK = "gossip: {beat_s: 0.1, silent_after_s: 1.0, summary_s: 0.5}"


@pytest.fixture
def start_one(start_router, tmp_path):
    """Start one of three routers that all know each other."""
    config = tmp_path / "router.yaml"
    config.write_text(QUICK)
    addresses = [f"ipc://{tmp_path}/{number}" for number in range(3)]

    def start(number):
        peers = [f"--peer={address}" for address in addresses if address != addresses[number]]
        own = ["--gossip-address", addresses[number], "--name", f"r{number}"]
        return start_router("--config", str(config), *own, *peers)

    return start


@pytest.fixture
async def talk_to():
    clients = []

    def talk(router) -> RouterClient:
        clients.append(RouterClient(router.url))
        return clients[-1]

    yield talk
    for client in clients:
        client.close()


async def waiting_on(client, worker="a") -> int:
    found = {one["worker"]: one for one in (await client.workers())["workers"]}
    return found[worker]["load"]["waiting"]


async def test_three_routers_share_reservations_and_one_that_is_killed_leaves_none(
    start_one, talk_to, eventually
):
    routers = [start_one(number) for number in range(3)]
    clients = [talk_to(router) for router in routers]
    for client in clients:
        for worker in ("a", "b"):
            await client.register(worker, 16)

    async def all_hear() -> bool:
        return all([len((await client.workers())["routers"]) == 2 for client in clients])

    def counts(*expected):
        async def are() -> bool:
            return tuple([await waiting_on(one) for one in clients[1:]]) == expected

        return are

    await eventually(all_hear)
    for number in range(4):
        await clients[0].select(f"r{number}", PROMPT, pinned="a")
    await eventually(counts(4, 4))
    assert (await clients[1].select("elsewhere", PROMPT)).decode == "b"
    await clients[0].free("r0")
    await clients[0].first_token("r1")
    await eventually(counts(2, 2))

    routers[0].kill()
    await eventually(counts(0, 0))

    clients[0] = talk_to(start_one(0))
    await clients[0].register("a", 16)
    await eventually(all_hear)
    await clients[0].select("r0", PROMPT, pinned="a")
    await eventually(counts(1, 1))


async def test_a_router_that_was_only_slow_is_counted_again(start_one, talk_to, eventually):
    slow, other_router = start_one(0), start_one(1)
    its, other = talk_to(slow), talk_to(other_router)
    for client in (its, other):
        await client.register("a", 16)
    await its.select("r", PROMPT)

    async def is_one() -> bool:
        return await waiting_on(other) == 1

    async def is_none() -> bool:
        return await waiting_on(other) == 0

    await eventually(is_one)
    slow.stop()
    await eventually(is_none)
    slow.go_on()
    await eventually(is_one)
    assert slow.end() == 0
    await eventually(is_none)  # it has said so


class Pair:
    """Two routers in this process, over TCP; the second hears the first."""

    def __init__(self, clock, *, key: bytes = KEY, **options) -> None:
        self.clock = clock
        self.gossips = [Gossip(GossipConfig(address="tcp://127.0.0.1:*", **options), KEY, clock)]
        peers = (self.gossips[0].address.removeprefix("tcp://"),)
        self.gossips.append(Gossip(GossipConfig(peers=peers, **options), key, clock))
        self.routers = [self._router(one) for one in self.gossips]
        for gossip, router in zip(self.gossips, self.routers, strict=True):
            gossip.start(router, asyncio.get_running_loop())

    def _router(self, gossip: Gossip) -> KvRouter:
        router = KvRouter(Hashers(KEY, 16), clock=self.clock, sharing=Sharing(gossip.publish))
        router.register(WorkerSpec(cache=CacheSpec(target="a", block_size=16)))
        return router

    def tick(self) -> None:
        for gossip in self.gossips:
            gossip.tick(self.clock())

    def heard(self) -> int:
        return self.routers[1].fleet["a"].load.view(self.clock()).waiting

    def close(self) -> None:
        for gossip in self.gossips:
            gossip.close(asyncio.get_running_loop())


@pytest.fixture
async def make_pair(clock):
    made = []

    def make(**options) -> Pair:
        made.append(Pair(clock, **options))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


async def test_whoever_begins_to_listen_hears_what_was_placed_before(make_pair, eventually):
    pair = make_pair()
    pair.routers[0].place(Request(request_id="r", prompt_tokens=100))

    def is_heard() -> bool:
        pair.tick()
        return pair.heard() == 1

    await eventually(is_heard)  # though the clock stands still: no summary is due


async def test_whoever_has_another_key_hears_nothing(make_pair, eventually):
    good, bad = make_pair(), make_pair(key=b"the secret of another cluster")
    for pair in (good, bad):
        pair.routers[0].place(Request(request_id="r", prompt_tokens=100))

    def is_heard() -> bool:
        good.tick()
        bad.tick()
        return good.heard() == 1

    await eventually(is_heard)
    assert (bad.heard(), bad.gossips[1].counters.received) == (0, 0)


async def test_silence_is_measured_on_the_clock_that_is_given(make_pair, clock, eventually):
    pair = make_pair(silent_after_s=3.0)
    pair.routers[0].place(Request(request_id="r", prompt_tokens=100))

    def is_heard() -> bool:
        pair.tick()
        return pair.heard() == 1

    await eventually(is_heard)
    clock.now += 2.9
    pair.gossips[1].tick(clock())
    assert pair.heard() == 1
    clock.now += 0.2
    pair.gossips[1].tick(clock())

    assert pair.heard() == 0
    assert (pair.gossips[1].peers, pair.gossips[1].counters.lost_peers) == ([], 1)


@pytest.mark.parametrize(
    "frames",
    [
        [b"change"],
        [b"change", b"\xc1"],
        [b"change", msgpack.packb(["r", "reserved", ["x"]])],
        [b"change", msgpack.packb(["r" * 600, "freed", "x"])],
        [b"beat", msgpack.packb(["r", 1])],
        [b"other", b""],
        [b"beat", msgpack.packb(["r"]), b""],
    ],
)
async def test_what_is_no_message_is_counted_and_dropped(clock, eventually, frames):
    context = wire.Context()
    publisher = context.socket(zmq.XPUB)
    secret = blake2b(KEY, digest_size=32, person=b"router gossip").digest()
    address = wire.bind(publisher, "tcp://127.0.0.1:*", secret)
    gossip = Gossip(GossipConfig(peers=(address,)), KEY, clock)
    router = KvRouter(Hashers(KEY, 16), clock=clock)
    gossip.start(router, asyncio.get_running_loop())

    def is_dropped() -> bool:
        publisher.send_multipart(frames)
        gossip.tick(clock())
        return gossip.counters.malformed > 0

    await eventually(is_dropped)
    gossip.close(asyncio.get_running_loop())
    publisher.close(linger=0)
    context.term()


def test_a_summary_of_too_many_blocks_tells_of_none(monkeypatch):
    stay = stay_of(b"x" * 32)
    summary = Summary((Reserved("r", (("a", stay),)),), frozenset({"r"}))
    assert module._bounded(summary) is summary

    monkeypatch.setattr(module, "_MAX_CHAIN_BYTES", 31)

    bounded = module._bounded(summary)
    assert bounded == Summary((Reserved("r", (("a", stay_of(b"")),)),), frozenset({"r"}))


def stay_of(chain):
    return Stay(100, 50, 1.5, chain)


@pytest.mark.parametrize("peer", ["host", "host:", "http://x:1", "host:port", ""])
def test_a_peer_that_is_no_address_is_refused(peer):
    with pytest.raises(InvalidValue, match="must be host:port"):
        module.peer_address(peer)
