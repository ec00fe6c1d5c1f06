"""A request is one trace over all its processes, which a real collector gets."""

import asyncio
import io
import json
import logging
from contextlib import contextmanager

import pytest
from tests.platform.observability.collector import Collector
from tests.platform.observability.conftest import PATIENCE_S, PROMPT

from stafette.platform import logs
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.observability.config import TracingConfig
from stafette.platform.observability.tracing import open_tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(params=["grpc", "http"])
def collector(request):
    collector = Collector(request.param)
    collector.settings = {"endpoint": collector.endpoint, "protocol": request.param}
    yield collector
    collector.close()


@contextmanager
def logged():
    """Keep what the frontend logs meanwhile."""
    lines, log = io.StringIO(), logging.getLogger("stafette.platform.frontend.app")
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logs.JsonLines("frontend-0"))
    log.addHandler(handler)
    log.setLevel("INFO")
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel("NOTSET")


async def await_spans(collector, *names):
    await await_that(lambda: all(map(collector.of, names)))


async def await_that(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_request_is_traced_through_all_processes(make_stack, collector):
    stack = await make_stack(tracing=collector.settings)
    stack.keep_apart("p0", "d0")

    await stack.complete(traceparent=SAMPLED[:-1] + "0")  # the client does not sample it
    with logged() as lines:
        answer = await stack.complete([7, *PROMPT], traceparent=SAMPLED)
    await await_spans(collector, "decode", "prefill", "kv transfer", "text_completion smollm2")

    request, place = collector.one("text_completion smollm2"), collector.one("place")
    prefill, decode = collector.one("prefill"), collector.one("decode")
    transfer = collector.one("kv transfer")
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert request.parent == PARENT
    assert {place.parent, prefill.parent, decode.parent} == {request.span_id}
    assert transfer.parent == decode.span_id
    assert [request.process, prefill.process, transfer.process] == ["frontend-0", "p0", "d0"]
    assert request.began < place.began <= place.ended < decode.ended < request.ended
    assert request.attributes["gen_ai.operation.name"] == "text_completion"
    assert request.attributes["gen_ai.request.model"] == "smollm2"
    assert request.attributes["gen_ai.request.max_tokens"] == 8
    assert request.attributes["gen_ai.usage.input_tokens"] == len(PROMPT) + 1
    assert request.attributes["gen_ai.usage.output_tokens"] == 8
    assert request.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert request.attributes["gen_ai.response.id"] == answer["id"]
    assert 0 < request.attributes["gen_ai.response.time_to_first_chunk"] < PATIENCE_S
    assert place.attributes["stafette.prefill"] == "p0"
    assert transfer.attributes["stafette.pulled_tokens"] >= 300
    assert decode.attributes["stafette.tokens"] == 8
    assert not any(span.failed for span in collector.spans)
    assert json.loads(lines.getvalue())["trace_id"] == TRACE


async def test_a_worker_that_dies_is_an_event_and_a_failure_is_told(make_stack):
    collector = Collector("grpc")
    settings = {"tracing": {"endpoint": collector.endpoint}, "dispatch": {"wait_s": 0.1}}
    stack = await make_stack({"b0": "both"}, **settings)
    others = await stack.start_workers({"b1": "both"}, 30.0)
    answer = asyncio.create_task(stack.complete(max_tokens=400))
    await await_that(lambda: stack.front.fleet.clients["b0"].num_requests)
    stack.front.fleet.follow({**stack.addresses, **others})
    await await_that(lambda: "b1" in stack.front.fleet.clients)

    stack.kill(0)
    await answer
    stack.kill(1)
    await await_that(lambda: not stack.front.fleet.clients)
    with pytest.raises(OSError, match="503"):
        await stack.complete()
    await await_that(lambda: len(collector.of("text_completion smollm2")) == 2)

    moved, failed = collector.of("text_completion smollm2")
    ((_, lost),) = [each for each in moved.events if each[0] == "going on elsewhere"]
    assert lost["error.type"] == "WorkerLost"
    assert lost["stafette.tokens"] > 0
    assert "first token" in dict(moved.events)
    assert not moved.failed
    places = [span for span in collector.of("place") if span.parent == moved.span_id]
    assert [span.attributes["stafette.decode"] for span in places] == ["b0", "b1"]
    assert (failed.failed, failed.attributes["error.type"]) == (True, "Unavailable")
    collector.close()


def test_without_an_endpoint_there_are_no_traces():
    assert open_tracing(TracingConfig(), "w", "decode") is None


def test_an_endpoint_is_a_url():
    with pytest.raises(InvalidSetting, match=r"tracing\.endpoint .*http://otel:4317"):
        TracingConfig(endpoint="otel:4317")
