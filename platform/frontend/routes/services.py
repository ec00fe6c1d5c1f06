"""What the routes work with, and what a route is."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from stafette.platform.console.console import Console
from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.fleet_planner import FleetPlanner
from stafette.platform.frontend.generator import Generator
from stafette.platform.frontend.limits import Gate
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.frontend.plans import Planner
from stafette.platform.frontend.protocol.base import Body, Fields, parse
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.serving import Serving
from stafette.platform.observability.page import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    config: FrontendConfig
    served: Served
    generator: Generator
    planner: Planner
    serving: Serving
    gate: Gate
    metrics: Metrics
    page: Page
    console: Console
    openapi: Callable[[], bytes]
    fleet_planner: FleetPlanner | None = None  # None: nobody sizes the fleet

    async def read(self, exchange: Exchange, kind: type[Body]) -> Body:
        """Return the request in the exchange's body."""
        config = self.config
        return parse(await exchange.body(config.max_body_bytes, config.body_timeout_s), kind)


Handler = Callable[[Services, Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`path` may end in {name}, which stands for all that follows."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[Fields] | None = None
    answer: type[Fields] | None = None  # of status 200, in JSON
    media: str = "text/plain"  # of an answer that has no type
    guarded: bool = True  # needs an API key, where there are keys
    admitted: bool = False  # counts against the limits
    streams: bool = False  # may answer with events
    polled: bool = False  # asked every few seconds by machines: that it went well is no news
    errors: tuple[int, ...] = ()  # statuses beside those that every guarded route has
