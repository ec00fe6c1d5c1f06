"""Agents that read: when a new one is made, what it knows, and when an old one is destroyed."""

import pytest

from stafette.kvtransfer.errors import PeerLost
from stafette.kvtransfer.transport import PeerInfo
from stafette.kvtransfer.transports.one_sided.engines import Engines
from stafette.kvtransfer.transports.one_sided.nixl_agent import NixlFailed

PEER = PeerInfo("owner", 7, "host")


@pytest.fixture
def engines(nixl):
    return Engines("reader", nixl.make_agent)


def test_no_agent_is_made_before_somebody_reads(engines, nixl, make_region):
    engines.attach(make_region())

    assert not nixl.agents


def test_agent_has_what_was_registered_before_and_after_it_was_made(engines, nixl, make_region):
    first, second = make_region(), make_region(name="other")
    engines.attach(first)

    with engines.use() as engine:
        engines.attach(second)

    assert len(engine.agent.registered) == 2
    engines.detach(first)
    assert len(engine.agent.registered) == 1


def test_one_agent_serves_all_reads(engines, nixl):
    with engines.use() as one, engines.use() as another:
        assert one is another
    with engines.use() as later:
        assert later is one


def test_metadata_is_fetched_once_for_every_change(engines):
    fetched = []

    def fetch():
        fetched.append(len(fetched))
        return b"theirs|"

    with engines.use() as engine:
        names = [engine.know(PEER, serial, fetch) for serial in (1, 1, 2, 2)]

    assert names == ["theirs"] * 4
    assert fetched == [0, 1]


def test_another_life_of_a_peer_is_another_peer(engines):
    with engines.use() as engine:
        engine.know(PEER, 1, lambda: b"old|")

        assert engine.know(PeerInfo("owner", 8, "host"), 1, lambda: b"new|") == "new"


def test_retired_engine_is_destroyed_when_its_last_user_has_left(engines):
    with engines.use() as old:
        engines.retire(old)
        assert not old.agent.destroyed
        with engines.use() as new:
            assert new is not old

    assert old.agent.destroyed
    assert old.gone
    assert not new.agent.destroyed


def test_new_engine_has_a_name_of_its_own(engines, nixl):
    with engines.use() as old:
        engines.retire(old)
    with engines.use():
        pass

    assert list(nixl.agents) == ["reader/1", "reader/2"]


def test_agent_that_lives_on_after_its_end_is_no_fence(engines):
    with engines.use() as engine:
        engine.agent.holds_on = True
        engines.retire(engine)

    assert engine.agent.destroyed
    assert not engine.gone


def test_agent_that_cannot_register_everything_is_given_back(engines, nixl, make_region):
    engines.attach(make_region())
    nixl.refuses = "register"

    with pytest.raises(NixlFailed), engines.use():
        pytest.fail("no engine can be used")

    assert nixl.agents["reader/1"].destroyed
    nixl.refuses = ""
    with engines.use() as engine:
        assert engine.agent.name == "reader/2"


def test_closed_engines_are_destroyed_and_make_no_others(engines):
    with engines.use() as engine:
        pass

    engines.close()

    assert engine.gone
    with pytest.raises(PeerLost), engines.use():
        pytest.fail("no engine can be used")
