"""What a control plane is told: a wrong value is named before anything listens."""

import pytest

from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.counters import Seldom
from stafette.kvtransfer.errors import InvalidValue

TOKEN = b"the token of this cluster"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token", b"short"),
        ("digest", b"x" * 65),
        ("port", -1),
        ("port", 65_536),
        ("allow_wildcard", True),
        ("max_frame_bytes", 65_535),
        ("max_frame_bytes", 1 << 32),
        ("handshake_timeout_s", 0),
        ("send_timeout_s", -1),
        ("close_timeout_s", float("nan")),
        ("backoff_s", 0),
        ("max_backoff_s", 0.05),
        ("max_strangers", 0),
        ("max_slow_calls", 0),
        ("slow_threads", 0),
    ],
)
def test_a_wrong_value_is_named(field, value):
    with pytest.raises(InvalidValue, match=r"^control\.") as caught:
        ControlConfig(**{"token": TOKEN} | {field: value})

    if field != "allow_wildcard":  # which misses the address to advertise
        assert caught.value.field == f"control.{field}"


def test_the_token_is_in_no_text():
    config = ControlConfig(token=TOKEN)
    with pytest.raises(InvalidValue) as caught:
        ControlConfig(token=b"a secret")

    assert "token" not in repr(config)
    assert "a secret" not in str(caught.value)


def test_a_line_of_a_kind_passes_once_in_a_while():
    now = [10.0]
    seldom = Seldom(5, clock=lambda: now[0])

    assert [seldom.passes("a"), seldom.passes("a"), seldom.passes("b")] == [True, False, True]
    now[0] = 15.0
    assert [seldom.passes("a"), seldom.passes("a")] == [True, False]
