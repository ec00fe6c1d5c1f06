"""A fleet is recommended that the planner's own arithmetic believes in, and our config loads."""

import pytest

from stafette.platform import cli
from stafette.platform.config import load
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import SloConfig
from stafette.platform.profiling.document import Document, Limits
from stafette.platform.profiling.pareto import front, fronts
from stafette.platform.profiling.points import Point
from stafette.platform.profiling.recommending import Engine, Load, Search, dollars_per_million
from stafette.workers.mocker.speed_profile import Profile

# A prompt of 1,000 tokens takes 110 ms; a step 10 ms and 1 ms more for each sequence.
SPEED = Profile(
    step_ms=10.0,
    prefill_ms_per_token=0.1,
    prefill_ms_per_pair=0.0,
    decode_ms_per_seq=1.0,
    decode_ms_per_kv_token=0.0,
    transfer_latency_ms=0.0,
    transfer_gb_s=1e6,
)
LIMITS = Limits(
    max_num_seqs=512, max_num_batched_tokens=8192, max_model_len=4096, kv_tokens=1_000_000
)
SLO = SloConfig(ttft_ms=500.0, itl_ms=30.0)
H200 = ["--model", "Qwen3-32B", "--hardware", "H200", "--isl", "4000", "--osl", "1000"]


def search(rate, slo=SLO, **engine):
    told = {"tensor_parallel": 1, "max_num_batched_tokens": 8192, "max_num_seqs": 512} | engine
    engines = [Engine(SPEED, told.pop("limits", LIMITS), told.pop("overhead_ms", 0.0), **told)]
    return Search(engines, Load(rate=rate, prompt_tokens=1000, output_tokens=100), slo)


def test_an_idle_load_needs_one_worker_that_does_both():
    found = search(0.01).cheapest(8)

    assert (found.kind, found.devices) == ("together", 1)
    assert found.excess(SLO) <= 1


def test_more_load_never_needs_fewer_devices():
    needed = [search(rate).cheapest(1000).devices for rate in (1, 4, 16, 64)]

    assert needed == sorted(needed)
    assert needed[-1] > needed[0]


def test_what_is_recommended_keeps_the_promise_and_one_device_less_does_not():
    looked = search(20)
    found = looked.cheapest(1000)

    assert found.ttft_ms <= SLO.ttft_ms
    assert found.speeds.itl_ms <= SLO.itl_ms
    assert looked.cheapest(found.devices - 1) is None


def test_the_batch_is_no_larger_than_needed():
    found = search(5).cheapest(100)

    assert found.engine.max_num_seqs < 512
    assert found.speeds.fits


def test_the_time_outside_of_steps_counts_against_the_first_token():
    assert search(0.01, overhead_ms=300.0).cheapest(1).ttft_ms > 300 + 110
    assert search(0.01, overhead_ms=450.0).cheapest(100) is None


def test_a_promise_below_a_lone_step_is_kept_by_nobody():
    looked = search(1, SloConfig(ttft_ms=500.0, itl_ms=5.0))

    assert looked.cheapest(1000) is None
    assert looked.fastest()[1] > 5.0
    nearest = looked.nearest(4)
    assert nearest.speeds.itl_ms > 5.0
    assert nearest.ttft_ms <= 500.0


def test_the_highest_rate_is_kept_and_a_higher_one_is_not():
    looked = search(1000)
    rate = looked.highest_rate(4)

    assert search(rate).cheapest(4) is not None
    assert search(rate * 1.05).cheapest(4) is None


def test_memory_bounds_what_runs_at_once():
    small = Limits(max_num_seqs=512, max_num_batched_tokens=8192, kv_tokens=4000)
    ample, tight = search(10).cheapest(1000), search(10, limits=small).cheapest(1000)

    assert tight.devices > ample.devices


def test_a_request_that_no_worker_holds_is_refused():
    with pytest.raises(InvalidSetting, match=r"--isl \+ --osl = 1100"):
        search(1, limits=Limits(kv_tokens=1000))


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"rate": 0.0}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"prompt_tokens": 0}, "--isl"),
        ({"output_tokens": 0}, "--osl"),
        ({"cached_share": 1.0}, "--cached"),
    ],
)
def test_a_load_of_nonsense_is_refused(wrong, flag):
    with pytest.raises(InvalidSetting, match=flag):
        Load(**({"rate": 1.0, "prompt_tokens": 10, "output_tokens": 10} | wrong))


def test_a_million_tokens_cost_what_the_devices_cost_meanwhile():
    looked = search(0.01)

    # 1 device at 3.6 dollars an hour, 1 token a second: a million take a million seconds
    output, everything = dollars_per_million(looked.cheapest(1), looked.load, 3.6)

    assert output == pytest.approx(1000.0)
    assert everything == pytest.approx(1000.0 / 11)


def test_a_front_holds_only_what_nothing_beats():
    assert front([(1, 5), (2, 4), (2, 3), (1, 2), (3, 1)]) == [(1, 5), (2, 4), (3, 1)]


def test_fronts_trade_speed_for_throughput():
    for curve in fronts(search(5), 3).values():
        speeds, throughputs = zip(*curve, strict=True)
        assert list(speeds) == sorted(speeds)
        assert list(throughputs) == sorted(throughputs, reverse=True)


def test_the_recommended_file_is_a_fleet_that_our_config_loads(tmp_path, capsys):
    path, chart = tmp_path / "fleet.yaml", tmp_path / "pareto.png"
    wanted = ["--gpus", "16", "--ttft-ms", "1000", "--itl-ms", "20", "--rate", "8", "--tp", "4"]

    told = ["--out", str(path), "--chart", str(chart)]
    assert cli.main(["recommend", *H200, *wanted, *told]) == 0

    config = load(path, environment={}).config
    shown = capsys.readouterr().out
    assert "at $3.80 an hour of a device" in shown
    assert config.planner.slo.itl_ms == 20.0
    (name,) = config.pools
    assert config.pools[name].num_gpus == 4
    assert config.engine_flags(name).tensor_parallel_size == 4
    assert f": {config.pools[name].replicas}, tensor_parallel_size 4" in shown
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_pools_apart_are_a_fleet_that_our_config_loads(tmp_path, capsys):
    path = tmp_path / "fleet.yaml"
    wanted = ["--gpus", "8", "--ttft-ms", "2000", "--itl-ms", "22", "--rate", "2", "--tp", "1"]

    assert cli.main(["recommend", *H200, *wanted, "--out", str(path)]) == 0

    config = load(path, environment={}).config
    assert set(config.pools) == {"prefill", "decode"}
    assert "prefill workers:" in capsys.readouterr().out


def test_an_impossible_promise_says_what_fails_and_what_works(capsys):
    wanted = ["--gpus", "8", "--ttft-ms", "1000", "--itl-ms", "20", "--rate", "8", "--tp", "4"]

    assert cli.main(["recommend", *H200, *wanted]) == 1

    shown = capsys.readouterr().out
    assert "itl_ms fails" in shown
    assert "above 20 ms" in shown
    assert "kept with these devices: up to" in shown
    assert "kept at this rate: with 12 devices" in shown


def test_a_promise_that_no_number_of_devices_keeps_is_told(capsys):
    wanted = ["--gpus", "8", "--ttft-ms", "1000", "--itl-ms", "1", "--rate", "8", "--tp", "4"]

    assert cli.main(["recommend", *H200, *wanted]) == 1

    assert "no number of devices keeps 1000 ms and 1 ms: an idle worker" in capsys.readouterr().out


def test_a_measured_profile_stands_for_model_and_hardware(tmp_path, capsys):
    path, out = tmp_path / "profile.json", tmp_path / "fleet.yaml"
    points = (
        Point(kind="prefill", ms=110.0, prompt_tokens=1000),
        Point(kind="decode", ms=12.0, batch=1, kv_tokens=1000),
        Point(kind="transfer", ms=0.5, nbytes=1_000_000, transport="shm"),
        Point(kind="transfer", ms=2.0, nbytes=4_000_000, transport="shm"),
    )
    subject = {"model": "smollm2", "device": "cpu", "threads": 2}
    Document(subject=subject, limits=LIMITS, points=points).write(path)
    wanted = ["--gpus", "4", "--ttft-ms", "900", "--itl-ms", "90", "--rate", "1"]
    load_flags = ["--isl", "1000", "--osl", "100", "--out", str(out)]

    status = cli.main(["recommend", "--profile", str(path), *wanted, *load_flags, "--price", "1"])

    assert status == 0
    config = load(out, environment={}).config
    assert config.model == "smollm2"
    for prior in config.router.priors.values():  # the router begins with what was measured
        assert prior.prefill_ms(1000) == pytest.approx(110.0, rel=1e-3)
    assert config.router.transfer.same_host_gb_s == pytest.approx(2.0)
    assert {(pool.num_cpus, pool.num_gpus) for pool in config.pools.values()} == {(2, 0)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*H200, "--gpus", "0"], "--gpus = 0: must be at least 1"),
        (
            [*H200, "--gpus", "8", "--tp", "4", "--dtype", "fp8", "--out", "fleet.yaml"],
            "--dtype = 'fp8': can be estimated, but no engine here runs it",
        ),
        ([*H200, "--gpus", "1", "--price", "-1"], "--price = -1.0: must be above 0"),
        (["--isl", "1", "--osl", "1", "--gpus", "1"], "--model = None: is needed"),
    ],
)
def test_wrong_flags_are_named(capsys, arguments, message):
    promise = ["--ttft-ms", "1000", "--itl-ms", "20", "--rate", "1"]

    assert cli.main(["recommend", *arguments, *promise]) == 1

    assert message in capsys.readouterr().err
