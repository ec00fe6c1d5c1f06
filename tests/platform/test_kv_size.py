"""`stafette kv-size`, as a user runs it."""

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest

from stafette.platform import cli
from stafette.platform.commands import kv_size

LLAMA_8B = ["--layers", "32", "--kv-heads", "8", "--head-dim", "128"]
ROOT = Path(__file__).parents[2]


def kv_size_of(capsys, *arguments):
    status = cli.main(["kv-size", *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_a_table_says_what_fits_and_how_long_it_travels(capsys):
    options = ["--host", "200GiB", "--gb-per-s", "25"]

    status, out, _ = kv_size_of(capsys, *LLAMA_8B, *options)

    assert status == 0
    assert "a block of 16 2 MiB" in " ".join(out.split())
    assert "512 blocks, 42.9 ms at 25 GB/s" in out
    assert "102,400 blocks = 1,638,400 tokens = 200 prompts" in out


def test_the_same_figures_come_as_json(capsys):
    options = ["--tp", "4", "--tokens", "100", "--disk", "1GiB", "--json"]

    _, out, _ = kv_size_of(capsys, *LLAMA_8B, *options)

    found = json.loads(out)
    assert found["block_bytes"] == 512 << 10
    assert found["prompt_blocks"] == 7
    assert found["tiers"] == {"disk": {"blocks": 2048, "tokens": 32_768, "prompts": 292}}


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"hidden_size": 4096},
        {"text_config": {"num_hidden_layers": 32, "num_attention_heads": 8, "head_dim": 128}},
    ],
)
def test_the_shape_is_read_from_a_models_config(capsys, tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))

    _, out, _ = kv_size_of(capsys, "--hf-config", str(tmp_path / "config.json"), "--json")

    assert json.loads(out)["token_bytes"] == 128 << 10


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "must hold a JSON object"), ("{", "cannot be read"), ("{}", "'num_hidden_layers'")],
)
def test_a_config_that_tells_no_shape_is_an_error(capsys, tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)

    status, _, err = kv_size_of(capsys, "--hf-config", str(tmp_path / "config.json"))

    assert status == 1
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--layers = None: is needed, or --hf-config FILE"),
        ([*LLAMA_8B, "--tp", "3"], "tp = 3: must divide the 8 KV heads"),
        ([*LLAMA_8B, "--host", "many"], "size = 'many'"),
    ],
)
def test_wrong_usage_names_the_flag_and_the_remedy(capsys, options, message):
    status, _, err = kv_size_of(capsys, *options)

    assert status == 1
    assert f"stafette: {message}" in err


def test_every_command_line_in_the_docs_is_understood():
    text = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    lines = re.findall(r"^(?:    |\$ )?(stafette kv-size .*?)(?:\s+#.*)?$", text, re.MULTILINE)
    parser = argparse.ArgumentParser(exit_on_error=False)
    kv_size.add_arguments(parser)

    assert lines
    for line in lines:
        kv_size.describe(parser.parse_args(shlex.split(line)[2:]))
