"""The YAML file: read strictly, with errors that name field, value and remedy."""

from pathlib import Path

import pytest

from stafette.platform.twin.config import read
from stafette.workers.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "twin").glob("*.yaml"))
PLAIN = "workload: {poisson: {requests_s: 2}}\npools: {prefill: {}, decode: {replicas: 3}}\n"


@pytest.fixture
def described(tmp_path):
    def read_text(text, *assignments):
        path = tmp_path / "twin.yaml"
        path.write_text(text)
        return read(path, list(assignments))

    return read_text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_right(path):
    assert read(path).pools


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


def test_roles_follow_from_names_and_sizes_have_defaults(described):
    config = described(PLAIN)

    assert [config.role(name) for name in config.pools] == ["prefill", "decode"]
    assert config.pools["decode"].replicas == 3
    assert config.engine_flags("decode").max_model_len == 131_072
    assert config.router_config().priors["decode"].max_num_batched_tokens == 8_192


def test_a_setting_can_be_given_over_the_file(described):
    config = described(PLAIN, "pools.decode.replicas=7", "engine.block_size=64")

    assert config.pools["decode"].replicas == 7
    assert config.block_size == 64


def test_a_profile_is_read_beside_the_description(described, tmp_path):
    (tmp_path / "fast.json").write_text('{"version": 1, "step_ms": 2.5}')

    config = described(PLAIN, "pools.decode.profile=fast.json")

    assert config.worker("decode", "d").profile.step_ms == 2.5
    assert config.router_config().priors["decode"].step_ms == 2.5


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("pools.decode.replica=2", "pools.decode.replica = 2: does not exist; did you mean"),
        ("pools.decode.replicas=-1", "pools.decode.replicas = -1: must be at least 0"),
        ("pools.decode.profile=x", "cannot be read"),
        ("workload.poisson.requests_s=.nan", "requests_s = nan: must be a number of at least 0"),
        ("workload.sessions={}", "workload.kind = 'poisson and sessions': must be exactly one"),
        ("workload.seed=soon", "workload.seed = 'soon': must be a valid integer"),
        ("pools.decode.engine.block_size=64", "must be the same in all pools"),
        ("engine.num_kv_blocks=null", "num_kv_blocks = None: must be given"),
        ("slo.ttft_ms=0", "ttft_ms = 0"),
        ("router.policy.name=best", "router.policy.name = 'best': must be"),
        ("tick_s=0", "tick_s = 0"),
        ("faults=[{at_s: 1}]", "must be exactly one of kill, slow and start_s"),
        ("faults=[{at_s: 1, kill: x}]", "faults.0 = 'x': must be a pool or one of its workers"),
    ],
)
def test_what_is_wrong_is_named(described, assignment, told):
    with pytest.raises(ConfigError) as caught:
        described(PLAIN, assignment)

    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["workload", "pools"])
def test_workload_and_pools_must_be_there(described, name):
    other = "pools: {a: {}}" if name == "workload" else "workload: {poisson: {}}"

    with pytest.raises(ConfigError, match=f"{name} = None: must be given"):
        described(other)
