"""Settings and requests are read strictly, and a mistake is told by its name."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.errors import InvalidValue
from stafette.router.service import messages
from stafette.router.service.config import RouterServiceConfig
from stafette.router.service.reading import read_as


def read_settings(**given):
    return read_as(RouterServiceConfig, given)


def test_every_part_of_the_router_can_be_set():
    config = read_settings(
        service={"port": 0, "block_size": 32},
        router={
            "policy": {"name": "dynamo", "dynamo": {}},
            "cost": {"crowd_weight": 0},
            "index": {"approximate": {"ttl_s": None, "generations": 3}},
            "priors": {"h100": {"step_ms": 4}},
        },
        admission={"max_target_queue_ms": 500, "weights": {"alice": 2.0}},
        events={"lost_after_s": 9},
        gossip={"peers": ["10.0.0.2:8091"]},
    )

    assert config.service.block_size == 32
    assert config.router.policy.name == "dynamo"
    assert config.router.cost.crowd_weight == 0.0
    assert config.router.index.approximate.ttl_s is None
    assert config.router.priors["h100"].step_ms == 4.0
    assert config.admission.weights == {"alice": 2.0}
    assert config.events.lost_after_s == 9.0
    assert config.gossip.peers == ("10.0.0.2:8091",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rooter": {}}, "rooter = {}: is not known; did you mean router?"),
        ({"service": {"prot": 1}}, "service.prot = 1: is not known; did you mean port?"),
        ({"service": {"port": "1"}}, "service.port = '1': must be a whole number"),
        ({"service": {"port": True}}, "service.port = True: must be a whole number"),
        ({"service": {"port": 70_000}}, "service.port = 70000: must be at most 65535"),
        ({"service": []}, "service = []: must be an object"),
        ({"router": {"predict": 1}}, "router.predict = 1: must be true or false"),
        (
            {"router": {"policy": {"name": "best"}}},
            "router.policy.name = 'best': must be one of kv",
        ),
        ({"router": {"cost": {"crowd_limit": 2}}}, "cost.crowd_limit = 2.0: must be in 0..1"),
        ({"router": {"cost": {"crowd_limit": float("nan")}}}, "must be a finite number"),
        ({"gossip": {"peers": "a:1"}}, "gossip.peers = 'a:1': must be a list"),
        ({"gossip": {"peers": [1]}}, "gossip.peers[0] = 1: must be a text"),
        ({"gossip": {"silent_after_s": 0.1}}, "must be at least two beats of 0.5 s"),
    ],
)
def test_a_wrong_setting_is_told_with_its_value_and_the_remedy(given, message):
    with pytest.raises(InvalidValue, match=re.escape(message)):
        read_settings(**given)


def test_what_is_required_is_told_when_it_is_missing():
    with pytest.raises(InvalidValue, match="worker = None: is required"):
        read_as(messages.Register, {"block_size": 16})


def test_bytes_are_hex_digits_where_there_are_no_bytes():
    sent = {"worker": "w", "block_size": 16, "fingerprint": "00ff"}

    assert read_as(messages.Register, sent).fingerprint == b"\x00\xff"
    assert read_as(messages.Register, sent | {"fingerprint": b"\1"}).fingerprint == b"\1"
    with pytest.raises(InvalidValue, match="fingerprint = 'xy': must be bytes"):
        read_as(messages.Register, sent | {"fingerprint": "xy"})


@pytest.mark.parametrize("text", ["\ud800", "x" * 513, "ß" * 300])
def test_a_text_that_is_too_long_or_no_text_is_refused(text):
    with pytest.raises(InvalidValue, match="must be a text of at most 512 bytes"):
        read_as(messages.Heartbeat, {"client": text})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
KINDS = [
    value
    for value in vars(messages).values()
    if isinstance(value, type) and value.__module__ == messages.__name__
]


@given(st.data())
def test_whatever_comes_is_read_or_told_to_be_wrong(data):
    kind = data.draw(st.sampled_from(KINDS))
    names = st.sampled_from([*kind.__dataclass_fields__])
    good = st.just("w") | st.just(1) | st.just(0.5) | st.just([])
    sent = data.draw(st.dictionaries(names, good | plain, max_size=6) | plain)

    with suppress(InvalidValue):
        read_as(kind, sent)
