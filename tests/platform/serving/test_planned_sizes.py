"""Whose number counts, where settings and a planner both name a pool's size."""

import warnings
from types import SimpleNamespace

import pytest
from ray.exceptions import GetTimeoutError

from stafette.platform.config import load_mapping
from stafette.workers.errors import EngineDead

with warnings.catch_warnings():  # of what Ray does with pydantic
    warnings.simplefilter("ignore")
    from stafette.platform.serving import planned_sizes
    from stafette.platform.serving.planned_sizes import with_planned_sizes

SETTINGS = {
    "model": "smollm2",
    "engine": {"max_model_len": 512},
    "pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 2}},
    "planner": {
        "mode": "on",
        "slo": {"ttft_ms": 60_000, "itl_ms": 5_000},
        "pools": {"decode": {"min_replicas": 1, "max_replicas": 4}},
    },
}


@pytest.fixture
def config():
    return load_mapping(SETTINGS, "args").config


@pytest.fixture
def serve_tells(monkeypatch):
    """Let Ray Serve's controller say how many replicas its deployments are to have."""

    def tell(**targets: int) -> None:
        deployments = {name: {"target_num_replicas": n} for name, n in targets.items()}
        details = {"applications": {"stafette": {"deployments": deployments}}}
        ask = SimpleNamespace(remote=lambda: details)
        controller = SimpleNamespace(get_serve_instance_details=ask)
        client = SimpleNamespace(_controller=controller)
        monkeypatch.setattr(planned_sizes, "_get_global_client", lambda: client)
        monkeypatch.setattr(planned_sizes.ray, "get", lambda asked, timeout: asked)

    return tell


@pytest.mark.parametrize(("planned", "kept"), [(3, 3), (9, 4), (0, 1)])
def test_a_fleet_that_runs_keeps_its_planned_size_within_the_bounds(
    config, serve_tells, planned, kept
):
    serve_tells(Planner=1, PrefillWorker=5, DecodeWorker=planned)
    said = []

    sized = with_planned_sizes(config, said.append)

    assert sized.pools["decode"].replicas == kept
    assert sized.pools["prefill"].replicas == 1  # which is not planned
    assert f"decode stays at {kept}" in said[0]


def test_the_first_start_has_the_size_of_the_settings(config, serve_tells):
    serve_tells(PrefillWorker=1, DecodeWorker=3)  # of a fleet without a planner

    assert with_planned_sizes(config, pytest.fail).pools["decode"].replicas == 2


def test_a_controller_that_is_silent_is_given_up_with_what_to_look_at(
    config, serve_tells, monkeypatch
):
    serve_tells(Planner=1)

    def get(asked, timeout):
        raise GetTimeoutError("nothing")

    monkeypatch.setattr(planned_sizes.ray, "get", get)
    with pytest.raises(EngineDead, match=r"controller.*no answer within 10 s.*`ray status`"):
        with_planned_sizes(config, print)
