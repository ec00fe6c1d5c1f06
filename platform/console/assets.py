"""The page's files, as they lie in the package: read once, and sent as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files

INDEX = "index.html"
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, no frames: what the page shows can run nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    etag: str
    headers: tuple[tuple[bytes, bytes], ...]


@cache
def assets() -> Mapping[str, Asset]:
    """Return all of them by name."""
    folder = files("stafette.platform.console").joinpath("page")
    found = {}
    for each in folder.iterdir():
        media = _MEDIA.get("." + each.name.rpartition(".")[2])
        if media is not None:
            found[each.name] = _asset(each.read_bytes(), media)
    return found


def _asset(body: bytes, media: str) -> Asset:
    etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    headers = {
        "content-type": media,
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",  # a browser keeps it, and asks whether it is still so
        "etag": etag,
    }
    return Asset(body, etag, tuple((k.encode(), v.encode()) for k, v in headers.items()))
