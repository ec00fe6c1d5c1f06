"""What does the console cost a frontend? One page's question, by the size of the fleet.

    python benchmarks/serving/console.py [--quick] [--json FILE]

The time is the event loop's on its CPU, in which no token goes out: a look at the workers, what the
page lacks, JSON and gzip. Nobody is behind the workers' last words; between two questions none of
these change, a tenth, or all.
"""

import argparse
import gzip
import random
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from types import SimpleNamespace
from typing import Any

from benchmarks.common.report import Goal, Report
from stafette.platform.console.console import Console, Subject
from stafette.platform.frontend.generator import Status
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.frontend.sse import as_json
from stafette.platform.serving.overview import overview
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec, KvIndex

_GOAL_MS = 10.0  # less than a token takes
_BUSY = ("running", "waiting", "queued_tokens", "used_blocks", "prefix_queries", "prefix_hits")


class MadeUpFleet:
    """Workers as a frontend knows them, with nobody behind them; makes no tokens."""

    def __init__(self, count: int) -> None:
        self._random = random.Random(1)
        index = KvIndex(Hashers("key", 16))
        self.router = SimpleNamespace(index=index)
        self.clients = {each.name: each for each in map(self._client, range(count))}
        for name in self.clients:
            index.register(CacheSpec(target=name, block_size=16))

    def change(self, count: int) -> None:
        for client in self._random.sample(list(self.clients.values()), count):
            for name in _BUSY:
                client.load[name] += self._random.randrange(1_000)

    def workers(self) -> list[dict[str, Any]]:
        return overview(self)  # type: ignore[arg-type]

    def decisions(self, query: str) -> Mapping[str, Any]:
        return {"decisions": [], "counters": {}}

    def status(self) -> Status:
        return Status()

    def _client(self, number: int) -> SimpleNamespace:
        sizes = {"num_blocks": 16_384, "block_size": 16, "block_bytes": 2 << 20}
        return SimpleNamespace(
            name=f"decode-{self._random.randrange(36**8):08x}",
            epoch=number,
            address=f"10.0.{number // 250}.{number % 250}:40000",
            description={"class": "decode", "host": f"{number:032x}", "max_num_seqs": 256, **sizes},
            load={"role": "decode", "draining": False, **dict.fromkeys(_BUSY, 0)},
            load_at=time.monotonic(),
        )


def measured(count: int, rounds: int) -> list[list[object]]:
    """Return a row for each way in which a fleet may have changed since the last question."""
    rows: list[list[object]] = []
    for what, changed in (
        ("all, at first", None),
        ("all", count),
        ("a tenth", count // 10),
        ("none", 0),
    ):
        fleet, now = MadeUpFleet(count), [0.0]
        console = Console(Subject("m", fleet, Metrics(), lambda: 0), lambda now=now: now[0])  # type: ignore[arg-type, misc]
        cursor, found = "", []
        for _ in range(rounds):
            fleet.change(changed or 0)
            now[0] += 1.0
            began = time.thread_time()
            told = console.data("" if changed is None else cursor)
            body = as_json(told).encode()
            packed = gzip.compress(body, 1)
            found.append((1e3 * (time.thread_time() - began), len(body), len(packed)))
            cursor = told["cursor"]
        ms, size, small = (median(column) for column in zip(*found[1:], strict=True))
        rows.append([count, what, round(ms, 2), round(size), round(small)])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="write the result here as well")
    given = parser.parse_args(arguments)
    rounds = 20 if given.quick else 100
    report = Report("what a page of the console costs a frontend")
    rows = [row for count in (10, 100, 1_000) for row in measured(count, rounds)]
    headers = ["workers", "changed", "CPU ms", "bytes", "gzipped"]
    report.table("one question", headers, rows)
    slowest = max(float(str(row[2])) for row in rows)
    report.goal(Goal("slowest question of 1,000 workers, ms", slowest, at_most=_GOAL_MS))
    return report.finish(given.json)


if __name__ == "__main__":
    sys.exit(main())
