"""What mock workers of a process share: they reach those of others, and hear when they end."""

import asyncio

import pytest

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.p2p.messages import Ended
from stafette.kvtransfer.errors import KvTransferError, StaleEpoch
from stafette.kvtransfer.strict import pack, unpack
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.news import Read, read_news

TOKEN = b"the cluster's token"
PATIENCE_S = 30.0


class Listener:
    def __init__(self) -> None:
        self.heard = []
        self.gone = asyncio.Event()
        self.news = asyncio.Event()

    def hear(self, peer, news) -> None:
        self.heard.append((peer, news))
        self.news.set()

    def lost(self, peer) -> None:
        self.gone.set()


def config(name):
    return AgentConfig(name=name, token=TOKEN, transports=("tcp",))


@pytest.fixture
async def hosts():
    both = MockHost(config("one")), MockHost(config("two"))
    yield both
    for host in both:
        host.close()


async def test_news_reach_a_worker_of_another_process_and_of_this_one(hosts):
    one, two = hosts
    near, far = Listener(), Listener()
    one.add("near", near)
    two.add("far", far)
    assert one.add_peer(two.metadata("far")) == "far"
    assert one.add_peer(one.metadata("near")) == "near"

    wire = one.wire("me")
    assert wire.tell("far", Ended("h", 3, "why"))
    assert wire.tell("near", Read("h", 7))
    assert not wire.tell("stranger", Read("h", 7))

    async with asyncio.timeout(PATIENCE_S):
        await far.news.wait()
        await near.news.wait()
    assert far.heard == [("me", Ended("h", 3, "why"))]
    assert near.heard == [("me", Read("h", 7))]


async def test_workers_hear_when_those_of_another_process_are_gone(hosts):
    one, two = hosts
    worker = Listener()
    one.add("w", worker)
    one.add_peer(two.metadata("far"))
    wire = one.wire("w")
    wire.probe("far")
    two.close()

    async with asyncio.timeout(PATIENCE_S):
        while not worker.gone.is_set():
            wire.probe("far")
            await asyncio.sleep(0.05)


async def test_a_worker_of_this_process_that_has_ended_is_lost_to_the_others(hosts):
    one, _ = hosts
    worker, other = Listener(), Listener()
    one.add("w", worker)
    one.add("other", other)

    one.remove("other")

    assert worker.gone.is_set()
    assert not one.wire("w").tell("other", Read("h", 0))


async def test_metadata_of_others_than_mock_workers_and_of_older_lives_are_refused(hosts):
    one, two = hosts
    one.add_peer(two.metadata("w"))
    kind, name, epoch, agent, inner = unpack(two.metadata("w"), 1 << 20)

    with pytest.raises(StaleEpoch):
        one.add_peer(pack([kind, name, epoch - 1, agent, inner]))
    with Agent(config("real")) as real, pytest.raises(KvTransferError, match="real ones"):
        one.add_peer(real.metadata())
    for wrong in (b"", b"nonsense", pack([kind, name, -1, agent, inner]), pack([kind, 3])):
        with pytest.raises(KvTransferError):
            one.add_peer(wrong)


@pytest.mark.parametrize("wrong", [b"", b"p2p:", pack(["read", "h", -1]), pack(["read", 3, 4])])
def test_news_that_are_none_are_refused(wrong):
    with pytest.raises(KvTransferError):
        read_news(wrong)
