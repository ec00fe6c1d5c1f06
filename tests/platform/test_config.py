"""The tree of settings: what is read, from where, and what is refused with which words."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stafette.platform.cli import main
from stafette.platform.config import Config, api_keys, load, load_mapping
from stafette.platform.config_showing import schema, show
from stafette.platform.frontend.errors import InvalidSetting
from stafette.workers.config import EngineConfig

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
SECRET = "a secret of this cluster"
FLEET = """\
model: smollm2
engine:
  max_model_len: 2048
pools:
  prefill: {replicas: 1, engine: {max_num_seqs: 8}}
  decode:
    replicas: 2
frontend:
  port: 9000
"""


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def read(path, *assignments, **environment):
    return load(path, assignments, environment)


def test_pools_have_the_common_flags_and_their_own_over_them(fleet):
    config = read(fleet, "pools.prefill.engine.max_model_len=1024").config

    prefill, decode = config.engine_flags("prefill"), config.engine_flags("decode")

    assert (prefill.max_num_seqs, prefill.max_model_len) == (8, 1024)
    assert (decode.max_num_seqs, decode.max_model_len) == (EngineConfig().max_num_seqs, 2048)


def test_without_any_file_a_machine_has_one_worker_of_each_kind():
    config = load(None, (), {}).config

    assert {name: config.role(name) for name in config.pools} == {
        "prefill": "prefill",
        "decode": "decode",
    }
    assert len(config.token) >= 16


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(fleet):
    given_ports = [
        read(fleet).config.frontend.port,
        read(fleet, STAFETTE__FRONTEND__PORT="9001").config.frontend.port,
        read(fleet, "frontend.port=9002", STAFETTE__FRONTEND__PORT="9001").config.frontend.port,
    ]

    assert given_ports == [9000, 9001, 9002]


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("pools.decode.replica=3", "pools.decode.replica = 3: does not exist; did you mean repl"),
        ("pools.decode.engine.max_num_seqs=0", "max_num_seqs = 0: must be at least 1"),
        ("pools.decode.num_cpus=many", "pools.decode.num_cpus = 'many': must be a valid number"),
        ("pools.decode.replicas=true", "pools.decode.replicas = True: must be a valid integer"),
        ("engine.block_size=15", "block_size = 15: must be a power of two"),
        ("pools.decode.engine.block_size=32", "must be the same in all pools"),
        ("pools.draft.replicas=1", "pools.draft.role = None: must be given"),
        ("pools={}", "must have one that decodes"),
        (
            "pools.decode={num_gpus: 1, engine: {tensor_parallel_size: 2}}",
            "num_gpus = 1.0: must be 2",
        ),
        ("pools.decode.nodes=0", "pools.decode.nodes = 0: must be at least 1"),
        (
            "pools={aggregated: {nodes: 2, engine: {tensor_parallel_size: 3}}}",
            "tensor_parallel_size = 3: must be a multiple of pools.aggregated.nodes, 2",
        ),
        (
            "pools={aggregated: {nodes: 2, num_cpus: 0, engine: {tensor_parallel_size: 2}}}",
            "pools.aggregated.nodes = 2: is above 1: give num_cpus or num_gpus",
        ),
        ("tiers={host: {num_blocks: 9, policy: best}}", "tiers.host.policy = 'best': must be"),
        ("tiers={}", "tiers.host = None: must be given"),
        ("tiers={host: {}}", "exactly one of the two must be above 0"),
        ("lora_modules={smollm2: /a}", "lora_modules = 'smollm2': is the model's own name"),
        ("frontend.port=99999", "frontend.port = 99999: must be at most 65535"),
        ("frontend.replicas=0", "frontend.replicas = 0: must be at least 1"),
        ("service.silence_s=0.1", "service.silence_s = 0.1: must be at least two beats"),
        ("router.policy.name=best", "router.policy.name = 'best': must be 'kv'"),
        ("router.cost=fast", "router.cost = 'fast': must be a mapping"),
        ("transfer.transports=[shm, udp]", "transfer.transports = 'udp': must be of shm"),
        ("discovery.etcd.endpoints=[there]", "discovery.etcd.endpoints = 'there': must be like"),
        ("cluster.token=abc", "cluster.token = '3 bytes': must have at least 16"),
        ("cluster.token_file=/nowhere", "cluster.token_file = '/nowhere': cannot be read"),
        ("model.name=x", "holds one value"),
        ("replicas", "must be NAME.NAME=VALUE"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_remedy(fleet, assignment, words):
    with pytest.raises(InvalidSetting) as raised:
        read(fleet, assignment)

    assert words in str(raised.value)


def test_a_wrong_line_of_a_file_is_named(fleet):
    fleet.write_text(FLEET.replace("replicas: 2", "replicas: two"))

    with pytest.raises(InvalidSetting, match=r"\(fleet.yaml:7\)"):
        read(fleet)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "fleet.yaml:1"),
        ("- model", "must be a mapping"),
        ("model: a\nmodel: b", "stands there twice, again in fleet.yaml:2"),
        ("model: 2026-01-01", "quote it"),
    ],
)
def test_a_file_that_is_none_is_refused(fleet, text, words):
    fleet.write_text(text)

    with pytest.raises(InvalidSetting) as raised:
        read(fleet)

    assert words in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidSetting, match="No such file"):
        read(tmp_path / "none.yaml")


def test_the_secret_comes_from_file_or_environment_and_is_not_shown(fleet, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")

    of_file = read(fleet, f"cluster.token_file={secret}")
    of_environment = read(fleet, STAFETTE_TOKEN=SECRET)

    for loaded in (of_file, of_environment):
        assert loaded.config.token == SECRET.encode()
        assert SECRET not in show(loaded)
        assert SECRET not in repr(loaded.config)


def test_keys_of_the_api_come_from_the_environment():
    config = load(None, (), {}).config.frontend

    (key,) = api_keys(config, {"STAFETTE_API_KEYS": "ops sk-0123456789abcdef"})

    assert key.name == "ops"
    assert api_keys(config, {}) is None
    with pytest.raises(InvalidSetting, match="holds no key"):
        api_keys(config, {"STAFETTE_API_KEYS": " "})


def test_what_is_shown_can_be_read_again_and_says_the_same(fleet, tmp_path):
    loaded = read(fleet, "router.policy.name=round_robin", STAFETTE_TOKEN=SECRET)
    text = show(loaded)
    again = tmp_path / "again.yaml"
    again.write_text(text.replace("token: (secret)", f"token: {SECRET}"))

    assert read(again).config.router == loaded.config.router
    assert read(again).config.engine_flags("decode") == loaded.config.engine_flags("decode")
    assert "name: round_robin" in text
    assert "# fleet.yaml:3" in text
    assert "# --set router.policy.name" in text


def test_the_schema_takes_the_examples_and_no_typo(fleet):
    rules = schema(Config)
    jsonschema.validate(yaml.safe_load(FLEET), rules)

    for path in EXAMPLES:
        jsonschema.validate(yaml.safe_load(path.read_text()), rules)
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate({"pools": {"decode": {"replica": 1}}}, rules)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_right(path):
    assert load(path, (), {"STAFETTE_TOKEN": SECRET}).config.pools


_names = st.sampled_from([f.name for f in fields(Config)]) | st.text(max_size=8)
_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(_names, _data, max_size=4))
def test_any_data_is_read_or_refused_clearly(values):
    with suppress(InvalidSetting):
        assert isinstance(load_mapping(values, "args", {}).config, Config)


def test_the_command_shows_checks_and_describes(fleet, capsys):
    assert main(["config", "check", str(fleet)]) == 0
    assert "prefill x 1, decode x 2" in capsys.readouterr().out

    assert main(["config", "show", str(fleet)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["pools"]["decode"]["replicas"] == 2

    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["additionalProperties"] is False

    assert main(["config", "check", str(fleet), "--set", "modell=x"]) == 1
    assert "did you mean model?" in capsys.readouterr().err


def test_reading_settings_imports_neither_torch_nor_ray():
    code = "import sys, stafette.platform.config as c; c.load(None, (), {}); " + (
        "sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_each_process_is_told_only_what_it_needs(fleet):
    def told(*assignments):
        config = read(fleet, *assignments, STAFETTE_TOKEN=SECRET).config
        return [config.for_workers("prefill"), config.for_workers("decode"), config.for_frontends()]

    before = told()

    assert told("pools.decode.replicas=7") == before
    assert told("pools.decode.engine.max_num_seqs=9")[::2] == before[::2]
    assert told("engine.max_num_seqs=9")[2] == before[2]
    assert told("router.policy.name=random")[:2] == before[:2]
    assert before[0].engine_flags("prefill").max_num_seqs == 8
    sized = told("pools.prefill.engine.block_size=32", "pools.decode.engine.block_size=32")[2]
    assert sized.engine_flags("any").block_size == 32
    assert before[1].role("decode") == "decode"


def test_every_engine_has_room_for_the_adapters(fleet):
    loras = "lora_modules={style: /adapters/style, tone: /adapters/tone}"

    config = read(fleet, loras).config

    flags = config.engine_flags("decode")
    assert (flags.enable_lora, flags.max_loras) == (True, 2)
    assert config.for_workers("decode").lora_modules == config.lora_modules
    assert read(fleet, loras, "engine.max_loras=5").config.engine_flags("decode").max_loras == 5


def test_workers_are_told_of_their_tiers_and_frontends_are_not(fleet):
    given = "tiers={host: {capacity_bytes: 1000000}, disk: {folder: /kv, num_blocks: 9}}"

    config = read(fleet, given).config

    assert config.for_workers("decode").tiers == config.tiers
    assert (config.tiers.host.capacity_bytes, config.tiers.disk.folder) == (1_000_000, Path("/kv"))
    assert config.for_frontends().tiers is None
    ranks = "pools.decode.engine.tensor_parallel_size=2"
    with pytest.raises(InvalidSetting, match="must be 1 where there are tiers"):
        read(fleet, given, ranks)


PLANNED = {"mode": "on", "pools": {"decode": {"max_replicas": 4}}}
MOCKED = {"num_kv_blocks": 64, "max_model_len": 512}


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"planner": {"mode": "on"}},
            "planner.pools = '{}': must name those whose size is planned",
        ),
        ({"planner": {"pools": {"encode": {}}}}, "planner.pools = 'encode': is no pool"),
        (
            {"planner": {"pools": {"decode": {"min_replicas": 5, "max_replicas": 2}}}},
            "planner.pools.decode.max_replicas = 2: must be at least min_replicas",
        ),
        (
            {"planner": PLANNED, "pools": {"prefill": {}, "decode": {"replicas": 5}}},
            "pools.decode.replicas = 5: must be in 1..4",
        ),
        (
            {"planner": {"mode": "on", "slo": {"itl_ms": -1}, "pools": {"decode": {}}}},
            "itl_ms = -1",
        ),
        (
            {"planner": PLANNED | {"max_gpus": 0.5}},
            "max_gpus = 0.5: is less than the pools' min_replicas take",
        ),
        (
            {
                "pools": {"aggregated": {}},
                "planner": {"mode": "on", "pools": {"aggregated": {"min_replicas": 0}}},
            },
            "engine.max_model_len = None: must be given where all pools may be empty",
        ),
        (
            {"pools": {"prefill": {"mock": {}}, "decode": {}}, "engine": MOCKED},
            "pools.decode.mock = None: must be given, as in prefill",
        ),
        (
            {"pools": {"aggregated": {"mock": {}}}},
            "pools.aggregated.engine.num_kv_blocks = None: must be given",
        ),
        (
            {"pools": {"aggregated": {"replicas": 0}}},
            "pools.aggregated.replicas = 0: must be at least 1 without a planner that is on",
        ),
        (
            {"pools": {"aggregated": {"role": "encode"}}},
            "pools.aggregated.role = 'encode': must be",
        ),
    ],
)
def test_what_a_planner_or_a_mock_fleet_cannot_be_is_refused_by_name(tree, words):
    with pytest.raises(InvalidSetting) as refused:
        load_mapping(tree, "test", {})

    assert words in str(refused.value)


def test_frontends_and_the_planner_are_told_nothing_that_the_planner_decides():
    def told(replicas):
        pools = {"prefill": {}, "decode": {"replicas": replicas}}
        tree = {"pools": pools, "planner": PLANNED, "cluster": {"token": "a token for the test"}}
        return load_mapping(tree, "test", {}).config

    assert told(2).for_planner() == told(3).for_planner()
    assert told(2).for_frontends() == told(3).for_frontends()
    assert told(2).for_frontends().dispatch.given["wakes"] is True


@pytest.mark.parametrize(
    ("written", "mode"), [("on", "on"), ("off", "off"), ("dry_run", "dry_run")]
)
def test_modes_need_no_quotes_though_yaml_takes_them_for_true_and_false(tmp_path, written, mode):
    path = tmp_path / "fleet.yaml"
    path.write_text(f"planner: {{mode: {written}, pools: {{decode: {{}}}}}}")

    assert load(path, [], {}).config.planner.mode == mode
