"""What docs/tuning.md says of an engine's flags, on the virtual clock."""

import json
from pathlib import Path

import pytest

from stafette.platform.cli import main

EXAMPLE = Path(__file__).parents[3] / "examples" / "twin" / "tuning.yaml"


@pytest.fixture
def simulate(tmp_path):
    def run(*settings: str) -> dict:
        sets = [word for each in ("workload.duration_s=60", *settings) for word in ("--set", each)]
        assert main(["simulate", str(EXAMPLE), *sets, "--json", str(tmp_path / "found.json")]) == 0
        return json.loads((tmp_path / "found.json").read_text())

    return run


def test_smaller_chunks_close_gaps_between_tokens_and_delay_first_ones(simulate):
    small, large = (simulate(f"engine.max_num_batched_tokens={n}") for n in (256, 8192))

    assert small["token_gap_ms"]["p99"] < large["token_gap_ms"]["p99"] / 4
    assert small["ttft_ms"]["p50"] > 2 * large["ttft_ms"]["p50"]


def test_too_few_places_are_a_queue_and_more_than_needed_are_neither_good_nor_bad(simulate):
    load = ("workload.poisson.requests_s=3", "workload.lengths.prompt_tokens=500")

    few, enough, many = (simulate(*load, f"engine.max_num_seqs={n}") for n in (4, 16, 64))

    assert few["ttft_ms"]["p50"] > 100 * enough["ttft_ms"]["p50"]
    assert enough["ttft_ms"] == many["ttft_ms"]
    assert enough["token_gap_ms"] == many["token_gap_ms"]


def test_few_places_keep_the_pace_and_break_the_promise_of_a_first_token(simulate):
    load = ("workload.poisson.requests_s=2", "slo.itl_ms=10")

    few, many = (simulate(*load, f"engine.max_num_seqs={n}") for n in (8, 64))

    assert few["itl_ms"]["p95"] < many["itl_ms"]["p95"]
    assert few["ttft_ms"]["p95"] > many["ttft_ms"]["p95"]
