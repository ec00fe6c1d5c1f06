"""The README and the docs tell the truth: links, commands, flags and snippets."""

import argparse
import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stafette.platform.cli import COMMANDS
from stafette.platform.config import load
from stafette.workers import EngineConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
SNIPPETS = [
    (name, snippet)
    for name, text in TEXT.items()
    for snippet in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]


def commands(start):
    """Return the command lines of all pages that begin so, without prompt and comment."""
    lines = (line for text in TEXT.values() for line in text.splitlines())
    pattern = re.compile(rf"^(?:    |\$ )?({start} .*?)(?:\s+#.*)?$")
    return sorted({match[1] for line in lines if (match := pattern.match(line))})


@pytest.mark.parametrize("page", PAGES, ids=TEXT)
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    relative = [link for link in links if "://" not in link]

    assert [link for link in relative if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=TEXT)
def test_every_file_that_is_named_exists(page):
    named = re.findall(
        r"\b((?:benchmarks|kvtransfer|platform|router|tests|workers)/[a-z_/0-9]+\.(?:py|cpp|h))\b",
        page.read_text(),
    )

    assert [path for path in named if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("name", TEXT)
def test_no_page_names_a_folder_of_its_writers_machine(name):
    assert not re.search(r"(?<![\w.~/])/(?:home|opt|root|tmp|work)/", TEXT[name])


def test_every_make_target_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for text in TEXT.values() for target in re.findall(r"\bmake (\w+)`", text)}

    assert named | {line.split()[1] for line in commands("make")} <= targets


@pytest.mark.parametrize("command", commands(f"stafette (?:{'|'.join(COMMANDS)})"))
def test_every_command_line_of_stafette_is_understood(command):
    name, *arguments = shlex.split(command)[1:]
    parser = argparse.ArgumentParser(exit_on_error=False)
    COMMANDS[name].add_arguments(parser)

    assert parser.parse_args(arguments)


def test_what_the_readme_asks_a_served_fleet_goes_where_it_is_served():
    section = TEXT["README.md"].partition("## Start")[2].partition("Everything goes")[0]
    asking = re.findall(r"^    stafette ([a-z].*?)(?:\s+#.*)?$", section, re.MULTILINE)
    served = load(ROOT / "examples/laptop.yaml").config.frontend

    assert asking
    for command in asking:
        name, *arguments = shlex.split(command)
        parser = argparse.ArgumentParser()
        COMMANDS[name].add_arguments(parser)
        assert parser.parse_args(arguments).url == f"http://{served.host}:{served.port}"


def test_every_benchmark_that_is_named_can_be_quick_and_write_json():
    named = {path for text in TEXT.values() for path in re.findall(r"benchmarks/\w+/\w+\.py", text)}
    script = (
        "import runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv = [path, '--help']\n"
        "    print('##', path)\n"
        "    try: runpy.run_path(path, run_name='__main__')\n"
        "    except SystemExit: pass\n"
    )

    helps = subprocess.run(
        [sys.executable, "-c", script, *sorted(named)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )

    assert helps.returncode == 0, helps.stderr
    shown = dict(part.split("\n", 1) for part in helps.stdout.split("## ")[1:])
    assert set(shown) == named
    assert [path for path in named if "--quick" not in shown[path]] == []
    assert [path for path in named if "--json" not in shown[path]] == []


def test_every_flag_in_the_table_of_flags_exists():
    table = TEXT["docs/engine.md"].partition("## Flags")[2]
    flags = [
        flag
        for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for flag in re.findall(r"`(\w+)`", cell)
    ]

    assert flags
    assert set(flags) <= {field.name for field in dataclasses.fields(EngineConfig)}


@pytest.mark.parametrize(("page", "snippet"), SNIPPETS)
def test_every_snippet_parses_and_imports_what_exists(page, snippet):
    imports = [
        node for node in ast.parse(snippet).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]

    exec(compile(ast.Module(imports, []), page, "exec"), {})


def test_the_python_that_moves_blocks_runs():
    (snippet,) = (snippet for page, snippet in SNIPPETS if page == "docs/transfer.md")
    env = os.environ | {"PYTHONWARNINGS": "error"}

    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, env=env, timeout=100
    )

    assert done.returncode == 0, done.stderr


def test_the_readmes_python_runs_and_knows_the_capital_of_france():
    (snippet,) = (snippet for page, snippet in SNIPPETS if page == "README.md")
    env = os.environ | {"PYTHONWARNINGS": "error"}

    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, env=env, timeout=200
    )

    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
