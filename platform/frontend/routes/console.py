"""The console: its page and files, which are no secret, and its data, which are."""

import gzip
from urllib.parse import parse_qs

from stafette.platform.console.assets import INDEX, assets
from stafette.platform.frontend.asgi import JSON, Exchange
from stafette.platform.frontend.errors import NotFound, shown
from stafette.platform.frontend.routes.services import Services
from stafette.platform.frontend.sse import as_json

_FILES = "/console/"
_WORTH_BYTES = 4_096  # to be compressed
_LEVEL = 1  # the next ones take longer than they save


async def page(services: Services, exchange: Exchange) -> None:
    await _send(exchange, INDEX)


async def file(services: Services, exchange: Exchange) -> None:
    await _send(exchange, exchange.path.removeprefix(_FILES))


async def data(services: Services, exchange: Exchange) -> None:
    """Tell what the page lacks; `since` is the cursor that it was given last."""
    since = parse_qs(exchange.query).get("since", [""])[-1]
    body = as_json(services.console.data(since)).encode()
    headers = [*JSON, (b"cache-control", b"no-store")]
    if len(body) >= _WORTH_BYTES and "gzip" in (exchange.header("accept-encoding") or ""):
        body = gzip.compress(body, _LEVEL)
        headers += [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
    await exchange.respond(200, body, headers)


async def _send(exchange: Exchange, name: str) -> None:
    asset = assets().get(name)
    if asset is None:
        raise NotFound(f"path = {shown(exchange.path)}: is no file of the console")
    if exchange.header("if-none-match") == asset.etag:
        await exchange.respond(304, b"", asset.headers)
        return
    await exchange.respond(200, asset.body, asset.headers)
