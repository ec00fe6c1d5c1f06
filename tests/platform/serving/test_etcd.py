"""Serving goes on while etcd is away; what has changed meanwhile is known when it is back."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from benchmarks.kvtransfer.etcd_server import EtcdServer, is_installed
from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.registry import open_directory
from stafette.platform.config import DiscoveryConfig
from stafette.platform.serving.directory_discovery import DirectoryDiscovery, publish_worker
from stafette.platform.serving.frontend_peers import FrontendPeers
from stafette.platform.serving.membership import Membership
from stafette.router.hashing import Hashers
from stafette.router.router import KvRouter
from stafette.router.sharing import Sharing

pytestmark = pytest.mark.skipif(not is_installed(), reason="etcd-server is not installed")

STORY = "Once upon a time there was a relay team that ran through seven countries. "


@pytest.fixture
def etcd(tmp_path):
    etcd = EtcdServer(tmp_path)
    etcd.start()
    yield etcd
    etcd.kill()


def directory(etcd):
    config = DiscoveryConfig(backend="etcd")
    return open_directory("etcd", config.directory, EtcdConfig(endpoints=(etcd.endpoint,)))


@asynccontextmanager
async def following(rig, etcd):
    """Let the rig's fleet follow whom etcd names."""
    peers = FrontendPeers("f0", "127.0.0.1", b"the key of this cluster")
    peers.start(KvRouter(Hashers("key", 16), sharing=Sharing(peers.gossip.publish)))
    discovery = DirectoryDiscovery(directory(etcd))
    membership = Membership(rig.fleet)
    discovery.start(membership, peers)
    letting_go = asyncio.create_task(membership.let_go())
    try:
        yield
    finally:
        letting_go.cancel()
        await peers.close()
        await discovery.close()


async def publish(rig, etcd, name):
    """Be the process of a worker, as far as etcd knows it."""
    own = await asyncio.to_thread(directory, etcd)
    address = rig.workers[name].address
    await asyncio.to_thread(publish_worker, own, name, 1, address, b"metadata")
    return own


async def test_requests_are_answered_without_etcd_and_new_workers_found_when_it_is_back(
    make_rig, etcd, expected
):
    rig = make_rig()
    await rig.start("b0")
    await rig.launch("b1")
    async with following(rig, etcd):
        first = await publish(rig, etcd, "b0")
        await rig.await_that(lambda: rig.fleet.clients.keys() == {"b0"})

        etcd.kill()
        assert await rig.answer(rig.request("without", STORY)) == expected(STORY)

        etcd.start()
        second = await publish(rig, etcd, "b1")
        await rig.await_that(lambda: rig.fleet.clients.keys() == {"b0", "b1"})
        answer = await rig.begin(rig.request("moved", STORY * 3, max_tokens=60))
        killed = rig.chosen("moved")
        rig.workers[killed].kill()
        assert await answer == expected(STORY * 3, max_tokens=60)
        for own in (first, second):
            await asyncio.to_thread(own.close)
    left = {"b0", "b1"} - {killed}
    assert rig.fleet.clients.keys() == left  # as long as its stream lasts
