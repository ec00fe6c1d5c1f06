"""The application: one ASGI callable, which any ASGI server can run."""

import functools
import logging
import re
import time
from contextlib import nullcontext
from dataclasses import replace

from stafette.platform.console.console import Console, Subject
from stafette.platform.frontend.asgi import Exchange, Receive, Scope, Send, encoded
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.cors import Cors
from stafette.platform.frontend.errors import (
    ApiError,
    ClientGone,
    NotAllowed,
    NotFound,
    TooMany,
    Unavailable,
    as_api_error,
    shown,
)
from stafette.platform.frontend.fleet_planner import FleetPlanner
from stafette.platform.frontend.generator import Generator
from stafette.platform.frontend.ids import new_id
from stafette.platform.frontend.keys import ApiKey, KeyRing
from stafette.platform.frontend.limits import Gate
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.frontend.metrics.exposition import FrontendMetrics
from stafette.platform.frontend.openapi import document
from stafette.platform.frontend.plans import Planner
from stafette.platform.frontend.routes.about import own_version
from stafette.platform.frontend.routes.services import Route, Services
from stafette.platform.frontend.routes.table import ROUTES
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.serving import Serving
from stafette.platform.observability.page import OwnPage, Page
from stafette.platform.observability.process import ProcessMetrics
from stafette.platform.observability.request_trace import RequestTracer

logger = logging.getLogger(__name__)
_POLLED = frozenset(route.path for route in ROUTES if route.polled)
_ADMITTED = tuple(route.path for route in ROUTES if route.admitted)
_OWN_ID = re.compile(r"[\w.:-]{1,128}")


class Frontend:
    """The API on one generator. `keys` None: everybody may ask. `page` is what /metrics shows."""

    def __init__(
        self,
        served: Served,
        generator: Generator,
        config: FrontendConfig | None = None,
        keys: tuple[ApiKey, ...] | None = None,
        page: Page | None = None,
    ) -> None:
        self.config = config or FrontendConfig()
        self.metrics = Metrics(_ADMITTED)
        self.gate = Gate(self.config.max_in_flight, time.monotonic)
        page = page or OwnPage(ProcessMetrics("frontend", "frontend"))
        own = FrontendMetrics(served.name, self.metrics, self._in_flight)
        page.process.add(own.collect)
        self.console = Console(Subject(served.name, generator, self.metrics, self._in_flight))
        self._keys = None if keys is None else KeyRing(keys)
        self._cors = Cors(self.config.cors_origins)
        self._routes = {(route.method, route.path): route for route in ROUTES}
        self._methods = _methods_by_path()
        self._services = Services(
            config=self.config,
            served=served,
            generator=generator,
            planner=Planner(served, generator, self.config),
            serving=Serving(generator, self.metrics),
            gate=self.gate,
            metrics=self.metrics,
            page=page,
            console=self.console,
            openapi=functools.cache(lambda: document(ROUTES, own_version(), keys is not None)),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))
        else:
            await send({"type": "websocket.close", "code": 1003})

    def show_planner(self, planner: FleetPlanner) -> None:
        """Answer for whoever sizes the fleet."""
        self._services = replace(self._services, fleet_planner=planner)
        self.console.show_planner(planner)

    def trace(self, tracer: RequestTracer) -> None:
        """Let each request that comes from now on be a span."""
        self._services.serving.tracer = tracer

    def drain(self) -> None:
        """Ask for no new requests, by /ready; what comes all the same is answered."""
        self.gate.is_open = False

    def _in_flight(self) -> int:
        return self.gate.in_flight

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self.gate.is_open = True
        self.console.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.drain()
        await self.console.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, exchange: Exchange) -> None:
        asked = exchange.header("x-request-id") or ""
        exchange.request_id = asked if _OWN_ID.fullmatch(asked) else new_id(num_digits=16)
        exchange.extra_headers = encoded({"x-request-id": exchange.request_id})
        self._cors.mark(exchange)
        status = 0
        try:
            await self._dispatch(exchange)
        except ClientGone as gone:
            status = gone.status
            self.metrics.disconnects += 1
        except ApiError as error:
            await self._refuse(exchange, error)
        except Exception as error:
            logger.exception("request %s failed", exchange.request_id)
            if exchange.started:
                raise  # the server closes the connection: the client sees that it broke off
            await self._refuse(exchange, as_api_error(error))
        finally:
            self._book(exchange, status or exchange.status)

    async def _dispatch(self, exchange: Exchange) -> None:
        if self._cors.is_preflight(exchange):
            await self._cors.answer_preflight(exchange)
            return
        route = self._route(exchange)
        exchange.route = route.path
        key = self._key(exchange) if route.guarded else None
        with self.gate.admit(key) if route.admitted else nullcontext():
            await route.handler(self._services, exchange)

    def _route(self, exchange: Exchange) -> Route:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        path = exchange.path
        route = self._routes.get((method, path)) or self._by_prefix(method, path)
        if route is not None:
            return route
        methods = self._methods.get(path)
        if methods is None:
            known = ", ".join(sorted(self._methods))
            raise NotFound(f"path = {shown(path)}: does not exist; there are {known}")
        headers = {"allow": ", ".join(methods)}
        raise NotAllowed(f"method = {shown(method)}: use {headers['allow']}", headers=headers)

    def _by_prefix(self, method: str, path: str) -> Route | None:
        for (own_method, own_path), route in self._routes.items():
            start, _, rest = own_path.partition("{")
            if rest and own_method == method and path.startswith(start) and path != start:
                return route
        return None

    def _key(self, exchange: Exchange) -> ApiKey | None:
        if self._keys is None:
            return None
        key = self._keys.find(exchange.header("authorization"))
        exchange.tenant = key.name
        return key

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        if isinstance(error, TooMany | Unavailable):
            self.metrics.rejected[error.code or error.kind] += 1
        exchange.extra_headers += encoded(error.headers)
        await exchange.respond(error.status, error.body())

    def _book(self, exchange: Exchange, status: int) -> None:
        self.metrics.responses[exchange.route, status] += 1
        level = logging.DEBUG if exchange.route in _POLLED and status < 400 else logging.INFO
        if logger.isEnabledFor(level):
            seconds = time.perf_counter() - exchange.arrived
            words = (exchange.request_id, exchange.method, exchange.path, status, seconds)
            logger.log(level, "%s %s %s %d %.3f s key=%s", *words, exchange.tenant or "-")


def _methods_by_path() -> dict[str, list[str]]:
    methods: dict[str, list[str]] = {}
    for route in ROUTES:
        methods.setdefault(route.path, []).append(route.method)
        if route.method == "GET":
            methods[route.path].append("HEAD")
    return methods
