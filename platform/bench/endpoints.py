"""Who is measured: LABEL=URL, where a service inside a cluster needs no scheme."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from stafette.platform.frontend.errors import InvalidSetting

PLOTS = "plots"  # the folder of charts, beside those of the labels
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    label: str
    url: str  # with a scheme, without /v1

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]

    @property
    def secure(self) -> bool:
        return self.url.startswith("https:")

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


def checked_name(option: str, name: str) -> str:
    """Return a name that is a folder's as well."""
    if not _NAME.fullmatch(name):
        raise InvalidSetting(option, name, "may have letters, digits, - and _ only")
    if name == PLOTS:
        raise InvalidSetting(option, name, f"is the folder of the charts: take any but {PLOTS}")
    return name


def read_endpoints(given: Sequence[str]) -> tuple[Endpoint, ...]:
    found: dict[str, Endpoint] = {}
    for text in given:
        endpoint = read_endpoint(text)
        if endpoint.label in found:
            raise InvalidSetting("--endpoint", text, f"the label {endpoint.label} is there already")
        found[endpoint.label] = endpoint
    if not found:
        raise InvalidSetting("--endpoint", None, "name at least one, as mine=http://127.0.0.1:8000")
    return tuple(found.values())


def read_endpoint(text: str) -> Endpoint:
    label, sign, url = text.partition("=")
    if not sign or "/" in label or ":" in label:  # a URL may hold a = of its own
        raise InvalidSetting("--endpoint", text, "must be LABEL=URL, as mine=http://127.0.0.1:8000")
    return Endpoint(checked_name("--endpoint", label), _checked_url(url))


def _checked_url(url: str) -> str:
    whole = url if "://" in url else f"http://{url}"
    remedy = "must be like http://HOST:PORT, or a service's name and port within a cluster"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError as error:
        raise InvalidSetting("--endpoint", url, f"{remedy}: {error}") from None
    host = parts.netloc.rpartition("@")[2]
    host = host.removesuffix(f":{port}") if port is not None else host.removesuffix(":")
    if parts.scheme not in _PORTS:
        raise InvalidSetting("--endpoint", url, f"{remedy}; {parts.scheme}:// is not spoken")
    if not _HOST.fullmatch(host) or parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidSetting("--endpoint", url, remedy)
    return whole.rstrip("/").removesuffix("/v1")
