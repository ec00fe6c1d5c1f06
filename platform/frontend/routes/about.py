"""What the server tells of itself: models, health, metrics, its version, its document."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.errors import NotFound, Unavailable, shown, wrong
from stafette.platform.frontend.routes.services import Services
from stafette.platform.observability.page import CONTENT_TYPE
from stafette.router.errors import InvalidValue

_MODELS = "/v1/models/"


def own_version() -> str:
    try:
        return version("stafette")
    except PackageNotFoundError:  # run from its sources
        return "0"


async def models(services: Services, exchange: Exchange) -> None:
    await exchange.respond_json({"object": "list", "data": _models(services)})


async def model(services: Services, exchange: Exchange) -> None:
    wanted = exchange.path.removeprefix(_MODELS)
    found = next((each for each in _models(services) if each["id"] == wanted), None)
    if found is None:
        known = ", ".join(each["id"] for each in _models(services))
        message = f"model = {shown(wanted)}: is not served here; served: {known}"
        raise NotFound(message, param="model", code="model_not_found")
    await exchange.respond_json(found)


async def live(services: Services, exchange: Exchange) -> None:
    """503 when only a restart helps."""
    if not services.generator.status().alive:
        raise Unavailable("the engine has stopped: restart the server")
    await exchange.respond_json({"status": "ok"})


async def ready(services: Services, exchange: Exchange) -> None:
    """503 while no new requests should be sent here."""
    if not services.gate.is_open:
        raise Unavailable("this server is about to end: ask another one")
    status = services.generator.status()
    if not (status.alive and status.ready):
        raise Unavailable("no worker is ready: wait, or look into the workers' logs")
    await exchange.respond_json({"status": "ok"})


async def metrics(services: Services, exchange: Exchange) -> None:
    text = await services.page.text()
    await exchange.respond(200, text, ((b"content-type", CONTENT_TYPE.encode()),))


async def workers(services: Services, exchange: Exchange) -> None:
    status = services.generator.status()
    requests = {
        "in_flight": services.gate.in_flight,
        "running": status.num_running,
        "waiting": status.num_waiting,
    }
    data = services.generator.workers()
    await exchange.respond_json({"object": "list", "data": data, "requests": requests})


async def explain(services: Services, exchange: Exchange) -> None:
    try:
        decisions = services.generator.decisions(exchange.query)
    except InvalidValue as error:
        raise wrong(error.field, error.value, error.remedy) from None
    await exchange.respond_json(decisions)


async def tell_version(services: Services, exchange: Exchange) -> None:
    await exchange.respond_json({"version": own_version()})


async def openapi(services: Services, exchange: Exchange) -> None:
    await exchange.respond(200, services.openapi())


def _models(services: Services) -> list[dict[str, Any]]:
    served = services.served
    loras = services.generator.status().loras
    names = [(name, None) for name in served.names] + [(name, served.name) for name in loras]
    return [
        {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "stafette",
            "root": served.root if parent is None else name,
            "parent": parent,
            "max_model_len": served.max_model_len,
        }
        for name, parent in names
    ]
