"""What records come to, by sums that can be done in the head."""

import json
import random

import pytest

from stafette.platform.bench.comparing import compare
from stafette.platform.bench.measured import Measured
from stafette.platform.bench.record import Record
from stafette.platform.bench.server_metrics import Watch, parse_metrics
from stafette.platform.bench.slo import Slo, read_slo
from stafette.platform.bench.summary import Cost, summarise
from stafette.platform.frontend.errors import InvalidSetting


def record(began_s=0.0, first_s=0.1, gap_s=0.1, tokens=5, **fields):
    chunks = tuple(first_s + gap_s * each for each in range(tokens))
    return Record(
        number=0,
        began_s=began_s,
        chunks_s=chunks,
        ended_s=chunks[-1],
        prompt_tokens=10,
        output_tokens=tokens,
        **fields,
    )


def test_throughput_goes_from_the_first_request_to_the_last_answer():
    records = [record(began_s=1.0), record(began_s=2.5)]  # the last answer ends at 3.0

    found = summarise(records, None, Cost(gpus=2), {})

    assert found.duration_s == pytest.approx(2.0)
    assert found.requests_s == pytest.approx(1.0)
    assert found.input_tokens_s == pytest.approx(10.0)
    assert found.output_tokens_s == pytest.approx(5.0)
    assert found.tokens_s == pytest.approx(15.0)
    assert found.gpu_tokens_s == pytest.approx(2.5)
    assert found.user_tokens_s == pytest.approx(10.0)


def test_percentiles_lie_between_samples_as_numpys_and_aiperfs_do():
    records = [record(first_s=each / 1e3, tokens=1) for each in (10, 20, 30, 40, 50)]

    spread = summarise(records, None, Cost(), {}).ttft_ms

    assert spread == pytest.approx(
        {"mean": 30, "least": 10, "most": 50, "p10": 14, "p25": 20, "p50": 30, "p75": 40}
        | {"p90": 46, "p95": 48, "p99": 49.6}
    )


def test_errors_are_counted_by_kind_and_in_no_mean():
    bad = record(first_s=99.0, error="timeout")
    records = [record(), bad, bad, record(error="HTTP 500: x")]

    found = summarise(records, Slo({"ttft": 200}), Cost(), {})

    assert found.errors == {"timeout": 2, "HTTP 500: x": 1}
    assert (found.requests, found.failed) == (1, 3)
    assert found.ttft_ms["most"] == pytest.approx(100)
    assert found.good_share == 0.25


def test_goodput_counts_who_keeps_every_limit():
    records = [record(), record(gap_s=0.4), record(first_s=0.9), record(tokens=1)]

    found = summarise(records, read_slo(["ttft:500", "tpot:150"], stream=True), Cost(), {})

    assert found.good_share == 0.5  # a single token has no TPOT to miss


def test_a_million_tokens_cost_what_the_gpus_cost_meanwhile():
    found = summarise([record(began_s=0.0, first_s=1.0, gap_s=0, tokens=100)], None, Cost(), {})
    paid = summarise(
        [record(first_s=1.0, gap_s=0, tokens=100)], None, Cost(gpus=2, dollars_hour=3.6), {}
    )

    assert found.dollars_output is None
    assert paid.dollars_output == pytest.approx(2 * 0.001 / 100 * 1e6)
    assert paid.dollars_all == pytest.approx(2 * 0.001 / 110 * 1e6)


def test_nothing_that_was_answered_is_no_division_by_zero():
    found = summarise([record(error="timeout")], None, Cost(dollars_hour=1), {})

    assert (found.requests_s, found.e2e_ms, found.dollars_output) == (0, None, None)


def test_hits_are_those_that_answers_tell_and_else_the_servers():
    told = [record(cached_tokens=5), record(cached_tokens=0)]

    assert summarise(told, None, Cost(), {"kv_hit_rate": 0.9}).kv_hit_rate == 0.25
    assert summarise([record()], None, Cost(), {"kv_hit_rate": 0.9}).kv_hit_rate == 0.9


def test_a_servers_metrics_are_read_over_all_labels():
    text = '# HELP x y\na{w="1"} 2\na{w="2"} 3\nb 1e3\nprocess_x NaN\n'

    assert parse_metrics(text)["a"] == 5
    assert parse_metrics(text)["b"] == 1000


def test_gauges_are_those_of_the_load_and_counters_what_was_added():
    running, hits, queries = (
        "vllm:num_requests_running",
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_queries_total",
    )
    rows = [(0, 10, 100), (4, 20, 120), (6, 20, 120), (0, 40, 200)]
    watch = Watch([{running: r, hits: h, queries: q} for r, h, q in rows])

    found = watch.summary()

    assert found["batch_size"] == {"mean": 5, "most": 6}
    assert found["kv_hit_rate"] == pytest.approx(0.3)


@pytest.mark.parametrize("text", ["ttft", "ttft:0", "speed:3", "ttft:x", "itl:9"])
def test_a_wrong_goal_is_named(text):
    with pytest.raises(InvalidSetting, match="--goodput"):
        read_slo([text], stream=True)


def test_first_tokens_are_not_to_be_seen_without_a_stream():
    with pytest.raises(InvalidSetting, match="--no-stream"):
        read_slo(["ttft:5"], stream=False)
    assert read_slo(["e2e:5"], stream=False) is not None


def level(folder, name, records):
    """Write a level as a run does; return it."""
    folder.mkdir(parents=True)
    lines = [json.dumps(each.to_dict()) for each in records]
    (folder / "records.jsonl").write_text("\n".join(lines))
    return Measured(
        label="x",
        level=name,
        load=1,
        axis="",
        backend="builtin",
        gpus=1,
        summary=summarise(records, None, Cost(), {}),
        folder=folder,
    )


def noisy(scale, seed):
    rng = random.Random(seed)
    return [
        record(began_s=i * 0.3, first_s=0.1 * scale * rng.uniform(0.8, 1.2), gap_s=0.05 * scale)
        for i in range(100)
    ]


def test_equal_servers_show_no_difference_and_a_slower_one_does(tmp_path):
    mine = level(tmp_path / "a", "c1", noisy(1, 1))
    twin = level(tmp_path / "b", "c1", noisy(1, 2))
    slower = level(tmp_path / "c", "c1", noisy(1.5, 3))

    same = {each.name: each for each in compare([mine], [twin])}
    slow = {each.name: each for each in compare([mine], [slower])}

    assert same["TTFT mean, ms"].verdict == "no difference seen"
    assert slow["TTFT mean, ms"].ratio == pytest.approx(1.5, rel=0.05)
    assert slow["TTFT mean, ms"].low > 1.4
    assert "worse" in slow["TTFT mean, ms"].verdict


def test_levels_that_nobody_shares_are_not_compared(tmp_path):
    with pytest.raises(InvalidSetting, match="no level in common"):
        compare(
            [level(tmp_path / "a", "c1", [record()])], [level(tmp_path / "b", "c2", [record()])]
        )
