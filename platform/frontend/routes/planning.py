"""GET /v1/planner, and the pins beneath it."""

from urllib.parse import parse_qs

from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.errors import InvalidSetting, NotFound, wrong
from stafette.platform.frontend.fleet_planner import NO_PLANNER, FleetPlanner
from stafette.platform.frontend.protocol.planning import PinRequest
from stafette.platform.frontend.routes.services import Services

_PINS = "/v1/planner/pins/"
_LAST = 10


async def overview(services: Services, exchange: Exchange) -> None:
    last = _last(exchange.query)
    planner = services.fleet_planner
    await exchange.respond_json(NO_PLANNER if planner is None else await planner.overview(last))


async def pin(services: Services, exchange: Exchange) -> None:
    body = await services.read(exchange, PinRequest)
    try:
        await _planner(services).pin(body.pool, body.replicas, body.for_s)
    except InvalidSetting as error:
        raise wrong(error.field, error.value, error.remedy) from None
    told = {"pool": body.pool, "replicas": body.replicas, "for_s": body.for_s}
    await exchange.respond_json(told)


async def unpin(services: Services, exchange: Exchange) -> None:
    pool = exchange.path.removeprefix(_PINS)
    try:
        found = await _planner(services).unpin(pool)
    except InvalidSetting as error:
        raise wrong(error.field, error.value, error.remedy) from None
    if not found:
        raise NotFound(f"pool = {pool!r}: is not pinned", param="pool")
    await exchange.respond_json({"pool": pool, "replicas": None, "for_s": None})


def _planner(services: Services) -> FleetPlanner:
    if services.fleet_planner is None:
        raise NotFound("planner: there is none: set planner.mode to on or dry_run, and serve again")
    return services.fleet_planner


def _last(query: str) -> int:
    given = parse_qs(query, keep_blank_values=True).get("last", [str(_LAST)])[-1]
    if not (given.isascii() and given.isdigit() and 1 <= int(given) <= 10_000):
        raise wrong("last", given, "must be a whole number from 1 to 10000")
    return int(given)
