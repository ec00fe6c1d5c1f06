"""Who the workers are: what a directory says, and what a fleet is told of it."""

import asyncio
from dataclasses import dataclass, field

import pytest

from stafette.kvtransfer.directory.directory import Directory
from stafette.kvtransfer.directory.memory import shared_store
from stafette.platform.serving.directory_discovery import DirectoryDiscovery, publish_worker
from stafette.platform.serving.frontend_peers import FrontendPeers
from stafette.platform.serving.membership import Membership
from stafette.router.hashing import Hashers
from stafette.router.router import KvRouter
from stafette.router.sharing import Sharing

KEY = b"the key of this cluster"
PATIENCE_S = 30.0


@dataclass
class FakeFleet:
    """Keeps to what it is told; `clients` are those that are connected."""

    clients: dict = field(default_factory=dict)
    followed: dict = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def follow(self, addresses):
        self.followed = dict(addresses)


@pytest.fixture
def fleet():
    return FakeFleet()


async def await_that(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_worker_that_leaves_is_kept_until_its_stream_ends(fleet):
    membership = Membership(fleet)
    letting_go = asyncio.create_task(membership.let_go())
    membership.take({"a": "host:1", "b": "host:2"})
    fleet.clients = {"a": object(), "b": object()}

    membership.take({"b": "host:2"})
    assert fleet.followed == {"a": "host:1", "b": "host:2"}

    del fleet.clients["a"]
    fleet.changed.set()
    await await_that(lambda: fleet.followed == {"b": "host:2"})
    assert not membership.leaving
    letting_go.cancel()


async def test_a_worker_that_died_is_let_go_at_once(fleet):
    membership = Membership(fleet)
    membership.take({"a": "host:1"})

    membership.take({})

    assert fleet.followed == {}


async def test_a_worker_that_comes_back_elsewhere_is_followed_there(fleet):
    membership = Membership(fleet)
    membership.take({"a": "host:1"})
    fleet.clients = {"a": object()}

    membership.take({"a": "host:9"})

    assert fleet.followed == {"a": "host:9"}


@pytest.fixture
async def frontend():
    """Make frontends that share a directory and hear of each other by it."""
    made = []

    async def make(name, fleet):
        peers = FrontendPeers(name, "127.0.0.1", KEY)
        router = KvRouter(Hashers("key", 16), sharing=Sharing(peers.gossip.publish))
        peers.start(router)
        discovery = DirectoryDiscovery(Directory(shared_store("tested", None)))
        discovery.start(Membership(fleet), peers)
        made.append((peers, discovery))
        return peers

    yield make
    for peers, discovery in made:
        await peers.close()
        await discovery.close()


async def test_frontends_find_workers_and_each_other_in_a_directory(fleet, frontend):
    other = FakeFleet()
    directory = Directory(shared_store("tested", None))
    publish_worker(directory, "d0", 1, "host:1", b"metadata")

    peers = [await frontend("f0", fleet), await frontend("f1", other)]

    await await_that(lambda: fleet.followed == other.followed == {"d0": "host:1"})
    await await_that(lambda: all(len(each.gossip.peers) == 1 for each in peers))
    await asyncio.to_thread(directory.close)
    await await_that(lambda: fleet.followed == other.followed == {})
