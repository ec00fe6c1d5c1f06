"""Host and disk below the workers of a twin: what is found where, and that it is told."""

import json

import pytest

from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig
from stafette.platform.config_reading import Part
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.config import FaultConfig, read
from stafette.platform.twin.html_report import html_of
from stafette.platform.twin.prompts import Piece
from stafette.platform.twin.summary import summary_of
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.tier_speed import TierSpeed

FLAGS = {"num_kv_blocks": 16, "max_model_len": 256, "async_scheduling": False}
ENGINE = Part(EngineConfig, frozenset(), FLAGS)
OLD = [Piece(7, 160)]  # a prompt that comes again: ten blocks
DESCRIPTION = """
workload: {duration_s: 1, poisson: {requests_s: 1}}
pools: {workers: {}}
tiers: {host: {num_blocks: 64}, disk: {folder: /kv, num_blocks: 128}}
tier_speed: {disk_read_gb_s: 5}
"""


def tiers(host, disk=None):
    below = disk and DiskConfig(folder="nowhere", num_blocks=disk, admission="always")
    return TiersConfig(host=HostConfig(num_blocks=host), disk=below)


def again(stage, others, repeats=1):
    """Return a workload in which a prompt comes again after others that need its blocks."""
    asked = [(float(number), 160, 4) for number in range(others + 1)]
    asked += [(others + 1.0 + number, 160, 4) for number in range(repeats)]
    old = {0: OLD} | {others + 1 + number: OLD for number in range(repeats)}
    return stage.given(*asked, prompts=old)


def test_a_prompt_that_the_device_has_lost_is_found_on_the_host(stage):
    results = stage.run(again(stage, others=3), engine=ENGINE, tiers=tiers(host=128))

    assert results.tiers["host"].found_tokens == 144  # but for the last block: a token is computed
    assert results.tiers["device"].found_tokens == 0
    assert results.tiers["host"].found_share == pytest.approx(9 / 45)
    assert results.hit_share == pytest.approx(144 / 800)


def test_and_on_the_disk_when_the_host_has_lost_it_too(stage):
    results = stage.run(again(stage, others=6), engine=ENGINE, tiers=tiers(host=16, disk=256))

    assert results.tiers["disk"].found_tokens >= 128
    assert results.tiers["host"].evicted_tokens > 0


def test_without_tiers_it_is_computed_again(stage):
    results = stage.run(again(stage, others=3), engine=ENGINE)

    assert (results.hit_share, results.tiers) == (0.0, {})


def test_the_router_sends_a_prompt_to_whose_host_has_it(stage):
    """Of two idle workers, round robin would take either."""
    workload = again(stage, others=7, repeats=3)

    results = stage.run(workload, engine=ENGINE, pools={"workers": 2}, tiers=tiers(host=128))

    assert results.tiers["host"].found_tokens + results.tiers["device"].found_tokens >= 3 * 128


def test_answers_and_hand_overs_are_those_of_a_fleet_without_tiers(stage):
    many = stage.given(*((number * 0.05, 900, 20) for number in range(40)))
    pools = {"prefill": 1, "decode": 1}
    stage.run(many, pools=pools)
    before = stage.answers

    results = stage.run(many, pools=pools, tiers=tiers(host=4_096))

    assert results.counters["handed_over"] > 25
    assert results.tiers["host"].stored_tokens > 40 * 900
    assert stage.answers == before


def test_what_a_killed_worker_had_found_still_counts_and_its_blocks_are_gone(stage):
    workload = again(stage, others=3, repeats=2)
    config = stage.config(
        start_s=0.1,
        engine=ENGINE,
        tiers=tiers(host=128),
        faults=(FaultConfig(at_s=4.5, kill="workers"),),
    )

    results = stage.run(workload, config)

    assert results.counters["lost"] == 0
    assert results.tiers["host"].found_tokens == 144  # before; after it nobody has any
    assert results.tiers["host"].usage == pytest.approx(10 / 128)


def test_what_a_slow_disk_has_is_computed_once_that_is_known(stage):
    """A block is computed in 1.6 ms: the disk takes 80 for it, and 0.02 when it is quick."""
    options = {"engine": ENGINE, "tiers": tiers(host=16, disk=256)}
    some = [(float(number), 160, 4) for number in range(24)]
    turns = {number: [Piece(number % 8, 160)] for number in range(24)}
    workload = stage.given(*some, prompts=turns)
    block_bytes = 16 * Profile().kv_bytes_per_token
    slow = TierSpeed(disk_read_gb_s=block_bytes / 0.08 / 1e9)

    found = {
        name: stage.run(workload, tier_speed=speed, **options).tiers["disk"].found_tokens
        for name, speed in (("slow", slow), ("quick", TierSpeed()))
    }

    assert 0 < found["slow"] <= 144  # the first load told
    assert found["quick"] > 8 * 128


def test_a_run_is_the_same_again(stage):
    options = {"engine": ENGINE, "tiers": tiers(host=16, disk=32)}

    first = stage.run(again(stage, others=9, repeats=4), **options).to_dict()

    assert stage.run(again(stage, others=9, repeats=4), **options).to_dict() == first


def test_reports_tell_what_each_tier_found(stage):
    results = stage.run(again(stage, others=6), engine=ENGINE, tiers=tiers(host=16, disk=256))

    told = json.loads(results.to_json())["tiers"]
    assert list(told) == ["device", "host", "disk"]
    assert told["disk"]["found_tokens"] == results.tiers["disk"].found_tokens
    for text in (summary_of(results), html_of(results, "tiers")):
        assert "found on the disk" in text


def test_tiers_are_described_as_in_a_deployment(tmp_path):
    path = tmp_path / "twin.yaml"
    path.write_text(DESCRIPTION)

    config = read(path)

    assert config.worker("workers", "w").tiers == config.tiers
    assert config.tiers.disk.num_blocks == 128
    assert config.worker("workers", "w").tier_speed.disk_read_gb_s == 5
    with pytest.raises(InvalidSetting, match="tier_speed"):
        read(path, ["tier_speed.host_gb_s=0"])
