"""Sessions and their targets."""

import pytest

from stafette.router.affinity import Affinity, AffinityConfig
from stafette.router.errors import InvalidValue


def test_session_is_bound_until_its_time_is_over_and_each_request_begins_it_anew():
    affinity = Affinity(AffinityConfig(mode="soft", ttl_s=10.0))
    affinity.bind("s", "a", 0.0)
    affinity.bind("s", "a", 8.0)

    assert affinity.target_of("s", 17.9) == "a"
    assert affinity.target_of("s", 18.0) is None
    assert len(affinity) == 0


def test_only_so_many_sessions_are_remembered():
    affinity = Affinity(AffinityConfig(mode="soft", max_sessions=2))
    for session in ("a", "b", "a", "c"):
        affinity.bind(session, "w", 0.0)

    assert [affinity.target_of(session, 1.0) for session in "abc"] == ["w", None, "w"]


def test_sessions_of_a_lost_target_are_free():
    affinity = Affinity(AffinityConfig(mode="hard"))
    affinity.bind("s", "a", 0.0)
    affinity.bind("t", "b", 0.0)

    affinity.forget_target("a")

    assert affinity.target_of("s", 1.0) is None
    assert affinity.target_of("t", 1.0) == "b"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "maybe"}, "affinity.mode"),
        ({"ttl_s": 0}, "affinity.ttl_s"),
        ({"slack_ms": -1}, "affinity.slack_ms"),
        ({"max_sessions": 0}, "affinity.max_sessions"),
    ],
)
def test_bad_configuration_names_its_field(options, field):
    with pytest.raises(InvalidValue, match=field):
        AffinityConfig(**options)
