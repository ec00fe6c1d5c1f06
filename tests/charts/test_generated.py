"""What generate.py makes is up to date, and complete."""

import json
import re
import runpy
import tomllib

import jsonschema_rs
import pytest
import yaml

from stafette.platform.config import Config
from stafette.platform.config_showing import schema


@pytest.fixture(scope="module")
def generate(chart):
    return runpy.run_path(str(chart.path.parent / "generate.py"))


def test_generated_files_are_up_to_date(chart, generate):
    remedy = "run: python charts/generate.py"

    for name, text in generate["made"]().items():
        assert (chart.path / name).read_text() == text, f"{name}: {remedy}"


def test_every_value_says_what_it_is_for(chart, generate):
    rows = re.findall(r"^\| `([^`]+)` \| .* \| (.*) \|$", generate["readme"](), re.MULTILINE)

    assert [path for path, about in rows if not about] == []
    assert len(rows) > 80


def test_every_value_that_the_schema_knows_has_a_default(chart):
    known = json.loads((chart.path / "values.schema.json").read_text())
    values = yaml.safe_load((chart.path / "values.yaml").read_text())

    missing = [
        f"{name}.{inner}"
        for name, part in known["properties"].items()
        if name not in ("config", "global")
        for inner in part.get("properties", {})
        if inner not in values[name]
    ]

    assert missing == []


def test_config_takes_every_setting_but_secrets(chart):
    known = json.loads((chart.path / "values.schema.json").read_text())
    config = known["properties"]["config"]["properties"]

    assert set(config) == set(schema(Config)["properties"])
    assert "token" not in config["cluster"]["properties"]


def test_schema_is_one(chart):
    known = json.loads((chart.path / "values.schema.json").read_text())

    assert jsonschema_rs.Draft7Validator(known)


def test_chart_and_package_have_the_same_version(chart):
    project = tomllib.loads((chart.path.parents[1] / "pyproject.toml").read_text())["project"]
    about = yaml.safe_load((chart.path / "Chart.yaml").read_text())

    assert about["appVersion"] == project["version"]


def test_page_names_only_values_and_files_that_exist(chart):
    page = (chart.path.parents[1] / "docs" / "kubernetes.md").read_text()
    known = json.loads((chart.path / "values.schema.json").read_text())["properties"]

    for path in re.findall(r"`([a-z]\w+(?:\.\w+)+)`", page):
        top, *rest = path.split(".")
        part = known.get(top)
        if (
            part is None or {"POOL", "NAME"} & set(rest) or path == "config.cluster.token"
        ):  # the refused one
            continue
        for name in rest:
            assert name in part["properties"], path
            part = part["properties"][name]
    for name in re.findall(r"`(values-\w+\.yaml)`", page):
        assert (chart.path / name).is_file()
