"""The examples of the router run, and those that run a benchmark know its options."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples" / "router"


def run(*arguments) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_stack_places_its_requests_and_learns_why():
    text = run(EXAMPLES / "other_stack.py")

    first, second, third = (line for line in text.splitlines() if line.startswith("turn "))
    where = first.split()[2]
    assert first == f"turn 1: {where} 0 tokens cached there"
    assert second == f"turn 2: {where} 192 tokens cached there"
    assert third == f"turn 3: {where} 288 tokens cached there"
    assert "actual 288 cached" in text


def test_every_other_example_runs_the_benchmark_that_it_names():
    scripts = sorted(set(EXAMPLES.glob("*.py")) - {EXAMPLES / "other_stack.py"})
    load_each = (
        "import runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv = [path, '--help']\n"
        "    try: runpy.run_path(path, run_name='__main__')\n"
        "    except SystemExit: pass\n"
    )

    shown = run("-c", load_each, *scripts)

    assert len(scripts) == 4
    assert shown.count("--quick") >= 4
    assert shown.count("--json") >= 4
