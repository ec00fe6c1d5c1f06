"""Show the workers of a running fleet: roles, load, use and hits of the KV cache, planned sizes.

`cached` is the share of a worker's blocks that the router knows to hold a prefix; `hits` the share
of prompt tokens that were found cached.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from stafette.platform.commands.planner import told_sizes
from stafette.platform.commands.talking import Asker, AskingFailed, add_server_arguments

_COLUMNS = (
    *("worker", "role", "state", "running", "waiting", "queued tokens"),
    *("KV used", "cached", "hits", "heard"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as the server tells it")


def run(arguments: argparse.Namespace) -> int:
    asker = Asker.of(arguments)
    told, planner = asker.get("/v1/workers"), _planner(asker)
    if arguments.json:
        json.dump({**told, "planner": planner}, sys.stdout, indent=2)
        print()
        return 0
    workers = told["data"]
    rows = [_COLUMNS, *(_row(worker) for worker in workers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print(_summary(workers, told["requests"]))
    for line in told_sizes(planner):
        print(line)
    return 0


def _planner(asker: Asker) -> Mapping[str, Any]:
    """Return what the planner tells; one that is being restarted is no reason to tell nothing."""
    try:
        found: Mapping[str, Any] = asker.get("/v1/planner?last=1")
    except AskingFailed as error:
        return {"mode": error.remedy, "pools": {}}
    return found


def _row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    used, blocks = worker.get("used_blocks", 0), worker.get("num_blocks", 0)
    return (
        str(worker["name"]),
        str(worker.get("role", "?")),
        "draining" if worker.get("draining") else "serving",
        str(worker.get("running", "?")),
        str(worker.get("waiting", "?")),
        str(worker.get("queued_tokens", "?")),
        f"{used / blocks:.0%} of {blocks}" if blocks else "?",
        _share(worker.get("cached_blocks", 0), blocks),
        _share(worker.get("prefix_hits", 0), worker.get("prefix_queries", 0)),
        f"{worker['heard_s']:.1f} s ago" if "heard_s" in worker else "not yet",
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _summary(workers: Sequence[Mapping[str, Any]], requests: Mapping[str, Any]) -> str:
    pools: dict[str, int] = {}
    for worker in workers:
        name = str(worker.get("class", "?"))
        pools[name] = pools.get(name, 0) + 1
    shown = ", ".join(f"{name} x {count}" for name, count in sorted(pools.items()))
    words = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in requests.items())
    return f"pools: {shown or 'no worker is connected'}\nthis frontend: {words}"
