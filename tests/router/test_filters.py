"""Who can take a request at all, and the reason when not."""

import pytest

from stafette.router.filters import FilterConfig, by_role, reason_against
from stafette.router.index import CacheSpec
from stafette.router.load import LoadView
from stafette.router.request import Candidate, Request, WorkerSpec


def reason(load=None, config=None, worker=None, **request):
    options = {"loras": frozenset({"x"}), "max_requests": 5, "total_blocks": 100} | (worker or {})
    spec = WorkerSpec(cache=CacheSpec(target="w", block_size=16, model="m"), **options)
    asked = Request(request_id="r", prompt_tokens=10, **({"model": "m"} | request))
    return reason_against(asked, spec, load or LoadView(), config or FilterConfig())


def test_target_that_fits_is_not_filtered():
    assert reason(lora="x", pinned="w") is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pinned": "v"}, "the request is pinned to v"),
        ({"model": "n"}, "serves model 'm'"),
        ({"lora": "y"}, "has no LoRA adapter 'y'"),
        ({"worker": {"taints": frozenset({"gpu-old", "zone-b"})}}, "is tainted: gpu-old, zone-b"),
        ({"load": LoadView(waiting=2, running=3)}, "is full: 5 requests"),
        (
            {"load": LoadView(queued_tokens=11), "config": FilterConfig(max_queued_tokens=10)},
            "is overloaded: 11 tokens wait",
        ),
        (
            {"load": LoadView(used_blocks=96), "config": FilterConfig(max_used_share=0.95)},
            "is overloaded: 96% of its blocks are in use",
        ),
    ],
)
def test_each_filter_says_why(options, expected):
    assert reason(**options) == expected


def test_tolerated_taints_do_not_matter():
    taints = {"taints": frozenset({"a", "b"})}

    assert reason(worker=taints, tolerations=frozenset({"a", "b", "c"})) is None
    assert reason(worker=taints, tolerations=frozenset({"a"})) == "is tainted: b"


def test_worker_without_a_list_of_adapters_serves_any():
    assert reason(worker={"loras": None}, lora="y") is None


def candidate(target, role):
    return Candidate(WorkerSpec(cache=CacheSpec(target=target, block_size=16), role=role))


def test_roles_divide_the_fleet():
    group = [candidate("p", "prefill"), candidate("d", "decode"), candidate("b", "both")]

    prefillers, decoders = by_role(group)

    assert [one.target for one in prefillers] == ["p"]
    assert [one.target for one in decoders] == ["d", "b"]


def test_where_nobody_decodes_those_that_compute_prompts_do_all():
    group = [candidate("p", "prefill"), candidate("q", "prefill")]

    assert by_role(group) == ([], group)
