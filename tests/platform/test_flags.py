"""Command-line flags follow the config's fields."""

import argparse

import pytest

from stafette.platform.flags import add_flags, given
from stafette.workers import EngineConfig


def parse(*arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, EngineConfig, "engine")
    return given(parser.parse_args(arguments), EngineConfig)


def test_nothing_given_sets_nothing():
    assert parse() == {}


def test_every_field_of_the_config_is_a_flag():
    parser = argparse.ArgumentParser()
    add_flags(parser, EngineConfig, "engine")

    shown = parser.format_help()

    for name in EngineConfig.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in shown


def test_values_have_the_type_of_their_field():
    flags = parse("--max-num-seqs", "8", "--gpu-memory-utilization", "0.5", "--model", "x.gguf")

    assert flags == {"max_num_seqs": 8, "gpu_memory_utilization": 0.5, "model": "x.gguf"}


def test_booleans_can_be_turned_off():
    assert parse("--no-enable-prefix-caching") == {"enable_prefix_caching": False}


def test_a_value_outside_the_choices_is_refused():
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 'float8'"):
        parse("--dtype", "float8")
