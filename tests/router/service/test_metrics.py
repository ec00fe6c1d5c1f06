"""Prometheus sees what happened, under names and labels whose number is bounded."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stafette.router.service.client import Refused

PROMPT = list(range(1, 161))


async def samples(served):
    text = await served.client.metrics()
    return {
        (
            sample.name.removeprefix("stafette_router_"),
            *sorted(sample.labels.values()),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_happened_is_counted(serve):
    served = await serve(gossip={"address": "tcp://127.0.0.1:*"})
    for name in ("a", "b"):
        await served.client.register(name, 16)
    await served.client.select("r0", PROMPT)
    await served.client.first_token("r0", cached_tokens=0, ttft_ms=2_000.0)
    await served.client.select("r1", PROMPT)
    await served.client.free("r1")
    with pytest.raises(Refused):
        await served.client.free("r1")
    with pytest.raises(Refused):
        await served.client.select("r2", PROMPT, model="none")
    await served.client.post("state", worker="b", draining=True)
    await served.ask("GET", "/nowhere")

    found = await samples(served)

    assert found["decisions_total", "placed"] == 2
    assert found["decisions_total", "no_candidate"] == 1
    assert found["prompt_tokens_total",] == 320
    assert found["cached_tokens_total", "best"] == 159
    assert found["outcomes_total",] == 1
    assert found["ttft_seconds_total",] == 2.0
    assert found["regret_seconds_total",] > 1.9
    assert found["reservations",] == 1
    assert found["workers", "healthy"] == 1
    assert found["workers", "draining"] == 1
    assert found["http_answers_total", "/v1/router/free", "unknown_reservation"] == 1
    assert found["http_answers_total", "other", "unknown_path"] == 1
    assert found["select_seconds_count",] == 2
    assert found["select_seconds_bucket", "+Inf"] == 2
    assert found["peers",] == 0


async def test_no_worker_model_or_client_becomes_a_label(serve):
    served = await serve()
    before = None

    for number in range(20):
        await served.client.register(f"w{number}", 16, model=f"m{number}")
        await served.client.select(
            f"r{number}", PROMPT, model=f"m{number}", tenant=f"t{number}", client=f"c{number}"
        )
        await served.ask("GET", f"/v1/router/{number}")
        before = before or set(await samples(served))

    assert set(await samples(served)) - before <= {
        ("http_answers_total", "/metrics", "ok"),
    }
