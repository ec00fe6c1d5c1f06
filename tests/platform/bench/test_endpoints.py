"""Names and URLs, by the rules of Dynamo's benchmarks."""

import pytest

from stafette.platform.bench.endpoints import checked_name, read_endpoint, read_endpoints
from stafette.platform.frontend.errors import InvalidSetting


@pytest.mark.parametrize(
    ("text", "url", "port"),
    [
        ("a=http://127.0.0.1:8000", "http://127.0.0.1:8000", 8000),
        ("a=http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000", 8000),
        ("a=vllm-agg.default.svc.cluster.local:8000", None, 8000),
        ("a=frontend", "http://frontend", 80),
        ("a=https://example.org/models", "https://example.org/models", 443),
        ("a=http://[::1]:9", "http://[::1]:9", 9),
    ],
)
def test_a_url_may_lack_its_scheme(text, url, port):
    endpoint = read_endpoint(text)

    assert endpoint.url == (url or f"http://{text.partition('=')[2]}")
    assert endpoint.port == port


@pytest.mark.parametrize(
    "text",
    ["http://h:1", "a", "a=", "=http://h", "a=ftp://h", "a=http://h:port", "a=http://", "a=h h"]
    + ["plots=http://h", "ü=http://h", "a b=http://h", "a=http://u:p@h", "a=http://h:70000"],
)
def test_what_is_no_label_with_a_url_is_refused_by_name(text):
    with pytest.raises(InvalidSetting, match="--endpoint"):
        read_endpoint(text)


def test_a_label_stands_once():
    with pytest.raises(InvalidSetting, match="label a"):
        read_endpoints(["a=h:1", "a=h:2"])
    with pytest.raises(InvalidSetting, match="at least one"):
        read_endpoints([])


@pytest.mark.parametrize("name", ["", "a b", "../up", "plots", "ä"])
def test_a_name_is_a_folders(name):
    with pytest.raises(InvalidSetting, match="--name"):
        checked_name("--name", name)
