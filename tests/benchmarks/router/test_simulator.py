"""The simulated fleet keeps its own rules, and the router's knowledge of it is exact."""

import hashlib
import json

import pytest

from benchmarks.router.simulator import (
    BLOCK_SIZE,
    Arrival,
    Simulation,
    Worker,
    pooled_percent,
    read_trace,
    spread,
    synthetic_trace,
)
from benchmarks.router.traces import BEST, CONTENDERS, DYNAMO, KV, PULL


def arrival(at_s: float, names: str, output_tokens: int = 100) -> Arrival:
    """Return a prompt of one full block a letter; each stands for all letters so far."""
    blocks = tuple(
        hashlib.blake2b(names[: end + 1].encode(), digest_size=16).digest()
        for end in range(len(names))
    )
    return Arrival(at_s, len(names) * BLOCK_SIZE, output_tokens, blocks)


def test_worker_forgets_the_end_of_the_oldest_prompt_first():
    worker = Worker("w", capacity=4)
    old, new = arrival(0, "abc").blocks, arrival(0, "xy").blocks
    worker.use(old, 0)

    stored, removed = worker.use(new, 0)

    assert stored.hashes == new
    assert removed.hashes == old[2:]
    assert (worker.cached(old), worker.cached(new)) == (2, 2)


def test_second_prompt_finds_what_the_first_one_left():
    arrivals = [arrival(0.0, "abcd"), arrival(10.0, "abcdefgh")]

    result = Simulation(CONTENDERS[KV], workers=3, capacity=0).run(arrivals)

    assert result.hit_percent == pytest.approx(100 * 4 / 12)
    assert result.ttfts_s == pytest.approx([0.02 + 4 * 512 / 20_000] * 2)


def test_prompts_wait_for_the_ones_before_them():
    arrivals = [arrival(0.0, "abcd"), arrival(0.0, "wxyz")]

    result = Simulation(CONTENDERS[KV], workers=1, capacity=0).run(arrivals)

    assert result.ttfts_s[1] == pytest.approx(result.ttfts_s[0] + 4 * 512 / 20_000)


@pytest.mark.parametrize("name", [KV, DYNAMO, BEST])
def test_hits_are_those_that_the_router_foresaw(name):
    simulation = Simulation(CONTENDERS[name], workers=4, capacity=300)

    simulation.run(synthetic_trace(400))

    counters = simulation._routers[0].decisions.counters
    assert counters.actual_cached_tokens > 0
    # The last token is computed even when all of its block is found.
    assert counters.actual_cached_tokens == pytest.approx(
        counters.predicted_cached_tokens, rel=1e-3
    )


def test_one_worker_finds_what_one_pooled_cache_finds():
    arrivals = synthetic_trace(300)

    result = Simulation(CONTENDERS[KV], workers=1, capacity=500).run(arrivals)

    assert result.hit_percent == pytest.approx(pooled_percent(arrivals, 500))


def test_pulled_blocks_are_counted_and_take_time():
    crowd = [arrival(0.0, "abcdefgh"), *(arrival(1.0, f"abcdefgh{n}") for n in range(30))]

    with_pulls = Simulation(CONTENDERS[PULL], workers=4, capacity=0).run(crowd)
    without = Simulation(CONTENDERS[KV], workers=4, capacity=0).run(crowd)

    assert with_pulls.pulled_tokens > 0 == without.pulled_tokens
    assert with_pulls.hit_percent >= without.hit_percent


def test_routers_that_share_do_better_than_those_that_do_not():
    arrivals = spread(synthetic_trace(800, speed=3.0))

    def mean(routers, share_s):
        simulation = Simulation(CONTENDERS[KV], 8, 2_000, routers, share_s)
        return simulation.run(arrivals).ttft_mean_s

    assert mean(4, 0.01) < mean(4, None)


def test_trace_is_read_with_its_times_sped_up(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]},
        {"timestamp": 3_000, "input_length": 600, "output_length": 6, "hash_ids": [1, 3]},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))

    first, second = read_trace(path, speed=2.0)

    assert (first.at_s, second.at_s) == (0.0, 1.5)
    assert (first.prompt_tokens, second.output_tokens) == (700, 6)
    assert first.blocks[0] == second.blocks[0] != second.blocks[1]


def test_requests_of_one_timestamp_are_spread_until_the_next():
    together = [arrival(at, "a") for at in (0.0, 0.0, 3.0, 3.0, 3.0, 6.0)]

    assert [one.at_s for one in spread(together)] == [0.0, 1.5, 3.0, 4.0, 5.0, 6.0]
