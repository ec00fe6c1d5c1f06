"""The published OpenAPI document, made of the routes and their models."""

import json
from collections.abc import Iterable
from typing import Any, Literal

from pydantic.json_schema import models_json_schema

from stafette.platform.frontend.protocol.answers import ErrorAnswer
from stafette.platform.frontend.protocol.base import Fields
from stafette.platform.frontend.routes.services import Route

_REF = "#/components/schemas/{model}"
_ABOUT = {
    400: "A field has a wrong value, or the body is not JSON.",
    401: "No API key, or an unknown one.",
    404: "No such model.",
    408: "The deadline has passed, or the body did not arrive in time.",
    413: "The body is too long.",
    422: "Understood, but this server or model cannot do it.",
    429: "A limit is reached, or everything is full: come again after Retry-After seconds.",
    500: "The server failed.",
    503: "No worker takes requests now.",
}
_EVENT = {
    "description": "One event; `data` is a chunk in JSON, or [DONE].",
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_OF_ANSWERS = (400, 404, 408, 413, 422, 429, 500, 503)
Mode = Literal["validation", "serialization"]


def document(routes: Iterable[Route], version: str, has_keys: bool) -> bytes:
    routes = list(routes)
    paths: dict[str, Any] = {}
    for route in routes:
        operation = _operation(route, has_keys)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    components: dict[str, Any] = {"schemas": _schemas(routes)}
    if has_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    about = {"title": "stafette", "version": version, "description": "An OpenAI-compatible API."}
    return json.dumps(
        {"openapi": "3.1.0", "info": about, "paths": paths, "components": components}
    ).encode()


def _operation(route: Route, has_keys: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__ + route.path.replace("/", "_").strip("{}"),
        "responses": {"200": _success(route)} | _failures(route, has_keys),
    }
    if route.body is not None:
        content = {"application/json": {"schema": _ref(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    if "{" in route.path:
        name = route.path.partition("{")[2].rstrip("}")
        schema = {"type": "string", "minLength": 1}
        parameter = {"name": name, "in": "path", "required": True, "schema": schema}
        operation["parameters"] = [parameter]
    if route.guarded and has_keys:
        operation["security"] = [{"key": []}]
    return operation


def _success(route: Route) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer is not None:
        content["application/json"] = {"schema": _ref(route.answer)}
    else:
        kind = "object" if route.media == "application/json" else "string"
        content[route.media] = {"schema": {"type": kind}}
    if route.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    return {"description": "Success.", "content": content}


def _failures(route: Route, has_keys: bool) -> dict[str, Any]:
    statuses = set(route.errors) | {500}
    if route.body is not None:
        statuses.add(400)
    if route.admitted:
        statuses.update(_OF_ANSWERS)
    if route.guarded and has_keys:
        statuses.add(401)
    content = {"application/json": {"schema": _ref(ErrorAnswer)}}
    return {
        str(status): {"description": _ABOUT[status], "content": content}
        for status in sorted(statuses)
    }


def _schemas(routes: Iterable[Route]) -> dict[str, Any]:
    models: list[tuple[type[Fields], Mode]] = [(ErrorAnswer, "validation")]
    for route in routes:
        models += [(model, "validation") for model in (route.body, route.answer) if model]
    _, schemas = models_json_schema(models, ref_template=_REF)
    found: dict[str, Any] = schemas.get("$defs", {})
    return found


def _ref(model: type[Fields]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
