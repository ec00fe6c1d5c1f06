"""Simulate a fleet: what a description of workload and pools comes to, on a virtual clock."""

import argparse
import time
from pathlib import Path

from stafette.platform.frontend.errors import InvalidSetting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("description", type=Path, help="YAML file; see docs/twin.md")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting over the file's, as pools.decode.replicas=4; may be repeated",
    )
    add("--trace", type=Path, metavar="FILE", help="in place of the file's workload.trace.file")
    add("--json", type=Path, metavar="FILE", help="write all figures and timelines there")
    add("--html", type=Path, metavar="FILE", help="write a report there, for a browser")
    add("--plans", type=Path, metavar="FILE", help="write the planner's plans there, a JSON a line")


def run(arguments: argparse.Namespace) -> int:
    from stafette.platform.twin.config import read
    from stafette.platform.twin.html_report import html_of
    from stafette.platform.twin.planned import Planned, planner_of
    from stafette.platform.twin.summary import summary_of
    from stafette.platform.twin.twin import Twin
    from stafette.platform.twin.workloads.making import make_workload

    settings = list(arguments.set)
    if arguments.trace is not None:
        settings.append(f"workload.trace.file={arguments.trace.absolute()}")
    config = read(arguments.description, settings)
    workload = make_workload(config.workload, arguments.description.parent)
    planned = None if config.planner.mode == "off" else Planned(planner_of(config))
    began = time.perf_counter()
    results = Twin(config, workload, planned).run()
    print(summary_of(results, time.perf_counter() - began))
    if arguments.json is not None:
        _write(arguments.json, results.to_json())
    if arguments.html is not None:
        _write(arguments.html, html_of(results, arguments.description.stem))
    if arguments.plans is not None:
        _write(arguments.plans, "" if planned is None else planned.to_json_lines())
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidSetting("output", str(path), f"cannot be written: {error.strerror}") from None
