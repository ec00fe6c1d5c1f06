"""A running stack counts what it does, and one page of its node tells all of it."""

import asyncio

import pytest
from tests.platform.observability.asking import get, samples, value
from tests.platform.observability.conftest import PROMPT


async def test_one_page_tells_of_all_that_live(make_stack):
    stack = await make_stack()
    stack.keep_apart("p0", "d0")
    await stack.complete()
    await stack.complete()
    await asyncio.to_thread(get, f"{stack.url}/health")

    text = await asyncio.to_thread(get, f"{stack.url}/metrics")

    assert value(text, "vllm:prompt_tokens_total") == 2 * len(PROMPT)
    assert value(text, "stafette_tenant_tokens_total", tenant="alice", kind="generation") == 16
    assert value(text, "stafette_dispatch_total", what="handed_over") == 2
    assert value(text, "stafette_handover_tokens_total", process="d0", way="pulled") >= 300
    assert value(text, "stafette_transfer_bytes_total", process="d0", transport="mock") > 0
    assert value(text, "stafette_leases_ended_total", process="p0", reason="released") > 0
    assert value(text, "stafette_worker_step_seconds_count", process="p0") > 0
    assert value(text, "vllm:prefix_cache_queries_total", process="p0", model_name="smollm2") > 0
    assert value(text, "stafette_router_decisions_total", result="placed") == 2
    assert value(text, "stafette_workers", role="prefill", draining="false") == 1
    assert value(text, "vllm:num_requests_running") == 0
    assert "cmpl-" not in text  # no request's id

    for number in range(3):  # requests and wrong paths add to numbers, not to their count
        await stack.complete([number, *PROMPT])
        with pytest.raises(OSError, match="404"):
            await asyncio.to_thread(get, f"{stack.url}/nowhere/{number}")
    again = (await stack.page.text()).decode()
    new = [dict(labels) for _, labels in _series(again) - _series(text)]
    assert {(each["path"], each["status"]) for each in new} == {("/metrics", "200"), ("", "404")}

    assert value(text, "stafette_worker_alive") == 2
    await stack.kill_workers()

    text = (await stack.page.text()).decode()
    assert "stafette_worker_alive" not in text  # who has died is not told of
    assert value(text, "vllm:generation_tokens_total") == 40


def _series(text):
    return {(s.name, tuple(sorted(s.labels.items()))) for s in samples(text)}
