"""What the server tells of itself."""

import asyncio
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stafette.platform.frontend.generator import Status


def own(labels):
    return {name: value for name, value in labels.items() if name not in ("process", "pool")}


async def metrics_of(api):
    """Return every sample by its name and labels, but for those that say which process it is."""
    text = (await api.get("/metrics")).body.decode()
    return {
        (sample.name, *sorted(own(sample.labels).items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_models_are_those_that_requests_may_name(api):
    api.generator.state = Status(loras=("tuned",))

    listed = (await api.get("/v1/models")).json()["data"]

    assert [model["id"] for model in listed] == ["small", "alias", "tuned"]
    assert [model["parent"] for model in listed] == [None, None, "small"]
    assert listed[0]["max_model_len"] == 512
    assert (await api.get("/v1/models/tuned")).json() == listed[2]
    assert (await api.get("/v1/models/or/g")).status == 404


@pytest.mark.parametrize(
    ("state", "live", "ready"),
    [
        (Status(), 200, 200),
        (Status(ready=False), 200, 503),
        (Status(alive=False, ready=False), 503, 503),
    ],
)
async def test_it_is_alive_and_ready_as_its_generator_is(api, state, live, ready):
    api.generator.state = state

    replies = [(await api.get(path)).status for path in ("/health", "/live", "/ready")]

    assert replies == [live, live, ready]


async def test_a_server_that_drains_asks_for_nothing_new_and_answers_what_comes(api):
    api.app.drain()

    assert (await api.get("/live")).status == 200
    refused = await api.get("/ready")
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert (await api.chat()).status == 200


async def test_it_has_a_version(api):
    assert (await api.get("/version")).json()["version"]


async def test_metrics_bear_vllms_names(api, script):
    api.generator.steps = script.say("a", "b", "c", finish="length")
    await api.chat()
    model = ("model_name", "small")

    values = await metrics_of(api)

    prompt = len(api.generator.request.prompt_token_ids)
    assert values["vllm:prompt_tokens_total", model] == prompt
    assert values["vllm:generation_tokens_total", model] == 3
    assert values["vllm:time_to_first_token_seconds_count", model] == 1
    assert values["vllm:inter_token_latency_seconds_count", model] == 2
    assert values["vllm:e2e_request_latency_seconds_count", model] == 1
    assert values["vllm:request_success_total", ("finished_reason", "length"), model] == 1


async def test_metrics_count_responses_by_path_and_status(api):
    await api.chat()
    await api.chat(temperature=-1)
    await api.get("/nowhere/1")
    await api.get("/nowhere/2")

    values = await metrics_of(api)

    chat = ("path", "/v1/chat/completions")
    assert values["stafette_http_responses_total", chat, ("status", "200")] == 1
    assert values["stafette_http_responses_total", chat, ("status", "400")] == 1
    assert values["stafette_http_responses_total", ("path", ""), ("status", "404")] == 2


async def test_failures_are_told_before_the_first_so_that_its_rate_is_known(api):
    values = await metrics_of(api)

    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"):
        for status in ("500", "503", "429"):
            failed = ("stafette_http_responses_total", ("path", path), ("status", status))
            assert values[failed] == 0
    for reason in ("overloaded", "unavailable", "rate_limit_exceeded"):
        assert values["stafette_rejected_total", ("reason", reason)] == 0


async def test_an_answer_that_was_given_up_counts_as_aborted(api):
    api.generator.steps = [asyncio.Event()]
    await api.chat(deadline=0.02, n=2)

    values = await metrics_of(api)

    aborted = ("finished_reason", "abort")
    assert values["vllm:request_success_total", aborted, ("model_name", "small")] == 2


async def test_every_time_falls_into_the_bucket_that_holds_it(api):
    histogram = api.app.metrics.e2e_latency
    for seconds in (0.1, 0.3, 0.31, 10_000):
        histogram.observe(seconds)

    values = await metrics_of(api)

    def up_to(bound):
        name = "vllm:e2e_request_latency_seconds_bucket"
        return values[name, ("le", bound), ("model_name", "small")]

    assert [up_to("0.3"), up_to("0.5"), up_to("7680.0"), up_to("+Inf")] == [2, 3, 3, 4]


async def test_a_path_that_does_not_exist_lists_those_that_do(api):
    reply = await api.get("/v2/chat")

    assert reply.status == 404
    assert "/v1/chat/completions" in reply.error["message"]


async def test_a_wrong_method_is_told_the_right_one(api):
    reply = await api.get("/v1/chat/completions")

    assert (reply.status, reply.headers["allow"]) == (405, "POST")


async def test_only_the_head_may_be_asked_for(api):
    assert (await api.send("HEAD", "/version", b"", {})).status == 200


async def test_it_may_be_mounted_under_a_prefix(api):
    api.root_path = "/llm"

    assert (await api.get("/llm/version")).status == 200


async def test_a_request_keeps_the_id_that_it_brings(api):
    own = await api.get("/version", x_request_id="trace-1.a")
    bad = await api.get("/version", x_request_id="a\tb")

    assert own.headers["x-request-id"] == "trace-1.a"
    assert bad.headers["x-request-id"] not in ("", "a\tb")


async def test_a_probe_that_went_well_is_no_news_and_one_that_failed_is(api, caplog):
    with caplog.at_level(logging.INFO):
        await api.get("/ready")
        assert "/ready" not in caplog.text

        api.generator.state = Status(ready=False)
        await api.get("/ready")

    assert "GET /ready 503" in caplog.text
