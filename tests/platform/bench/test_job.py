"""The chart's job runs a benchmark."""

import argparse
import shlex
from pathlib import Path

import yaml

from stafette.platform.cli import COMMANDS
from stafette.platform.commands.benching import plan_of

VALUES = Path(__file__).parents[3] / "charts/stafette/values.yaml"


def test_what_the_charts_job_runs_is_a_benchmark_of_this_fleet():
    command = yaml.safe_load(VALUES.read_text())["benchmark"]["command"]
    url = "http://demo-stafette.prod.svc:8000"
    program, name, *words = shlex.split(command.replace("$STAFETTE_URL", url))
    parser = argparse.ArgumentParser()
    COMMANDS[name].add_arguments(parser)

    plan = plan_of(parser.parse_args(words))

    assert program == "stafette"
    assert plan.endpoints[0].url == url
    assert [level.name for level in plan.levels()] == ["c1", "c4", "c16"]
