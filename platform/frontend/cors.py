"""Lets pages of other origins call the API: answers preflights, marks responses."""

from stafette.platform.frontend.asgi import Exchange

_METHODS = b"GET, POST, OPTIONS"
_MAX_AGE_S = b"600"


class Cors:
    """`*` among the origins allows any page. Keys travel in a header, so no cookies are allowed."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)

    def mark(self, exchange: Exchange) -> None:
        """Add the headers by which a browser lets the page read the response."""
        origin = exchange.header("origin")
        if origin is None or not (self._any or origin in self._origins):
            return
        shown = b"*" if self._any else origin.encode("latin-1")
        exchange.extra_headers += [
            (b"access-control-allow-origin", shown),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"origin"),
        ]

    def is_preflight(self, exchange: Exchange) -> bool:
        asks = exchange.header("access-control-request-method")
        return exchange.method == "OPTIONS" and asks is not None

    async def answer_preflight(self, exchange: Exchange) -> None:
        wanted = exchange.header("access-control-request-headers") or "authorization, content-type"
        headers = (
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", wanted.encode("latin-1")),
            (b"access-control-max-age", _MAX_AGE_S),
        )
        await exchange.respond(204, b"", headers)
