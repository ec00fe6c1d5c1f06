"""Whoever is told a URL must be able to use it."""

import pytest

from stafette.router.errors import InvalidValue
from stafette.router.service.listening import open_listener, url_of


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "10.1.2.3"), ("::", "10.1.2.3"), ("::1", "[::1]")],
)
def test_a_url_names_the_host_that_others_reach(host, shown):
    with open_listener(host, 0) as listener:
        port = listener.getsockname()[1]

        assert url_of(listener, False, "10.1.2.3") == f"http://{shown}:{port}"


def test_an_address_that_listens_everywhere_is_reached_here_where_nothing_else_is_known():
    with open_listener("0.0.0.0", 0) as listener:
        assert url_of(listener, True).startswith("https://127.0.0.1:")


def test_a_port_that_is_taken_is_named_with_the_remedy():
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InvalidValue, match=f"127.0.0.1:{port}.*choose another host or port"):
            open_listener("127.0.0.1", port)
