"""Questions by HTTP, as plain values."""

import json
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 30.0


def get(url: str) -> str:
    with urlopen(url, timeout=_TIMEOUT_S) as answer:
        return answer.read().decode()


def post(url: str, body: dict, headers: dict[str, str]) -> dict:
    data = json.dumps(body).encode()
    asked = Request(url, data, {"content-type": "application/json", **headers})
    with urlopen(asked, timeout=_TIMEOUT_S) as answer:
        return json.loads(answer.read())


def samples(text: str) -> list:
    return [s for family in text_string_to_metric_families(text) for s in family.samples]


def value(text: str, name: str, **labels: str) -> float:
    """Return the sum over all samples with these labels."""
    found = [
        s.value for s in samples(text) if s.name == name and labels.items() <= s.labels.items()
    ]
    assert found, f"{name}{labels} is not told"
    return sum(found)
