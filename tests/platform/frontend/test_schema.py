"""The published OpenAPI document is honest: what it allows is served, and served as it says."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.routes.table import ROUTES
from stafette.platform.frontend.served import Served

load_all_checks()
CHECKED = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
        "allow_header_conformance",
    ]
)


@pytest.fixture(scope="module")
def schema(tokenizer, script):
    vector = bytes(8)

    def answer(request):
        last = {"embedding": vector, "prompt_logprobs": [], "finish_reason": "stop"}
        return [[script.delta("Hi", index, **last)] for index in range(request.params.n)]

    served = Served.of(FrontendConfig(), "small", tokenizer, 512)
    app = Frontend(served, script.Generator(steps=answer))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_operation_does_what_the_document_says(schema, route):
    operation = schema[route.path][route.method]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case):
        case.call_and_validate(checks=CHECKED)

    check()


async def test_the_document_names_every_route(make_api):
    document = json.loads((await make_api().get("/openapi.json")).body)

    named = {(m.upper(), path) for path, each in document["paths"].items() for m in each}
    assert named == {(route.method, route.path) for route in ROUTES}
    assert "securitySchemes" not in document["components"]
