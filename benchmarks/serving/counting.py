"""What it costs to count, to tell what was counted, and not to trace.

    python benchmarks/serving/counting.py [--quick] [--json FILE]

Ours beside prometheus_client's own objects, which a token would touch several times; the lowest of
some rounds, in turns, so that other load on the machine disturbs both alike.
"""

import argparse
import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from benchmarks.common.report import Goal, Report
from stafette.kvtransfer.histogram import Histogram as OwnHistogram
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.frontend.metrics.exposition import FrontendMetrics
from stafette.platform.observability.merging import merged
from stafette.platform.observability.process import ProcessMetrics
from stafette.workers.tracing import happened

_ROUNDS, _QUICK_ROUNDS = 7, 3
_PROCESSES = 8  # of the node whose page is put together


HISTOGRAM, COUNTER = "a value into a histogram", "a counter"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    book, registry = Metrics(), CollectorRegistry()
    own = OwnHistogram(book.inter_token_latency.bounds)
    bounds = own.bounds
    theirs = Histogram("h", "x", ["model"], buckets=bounds, registry=registry).labels("m")
    counter = Counter("c", "x", ["model"], registry=registry).labels("m")
    process = ProcessMetrics("frontend-0", "frontend")
    process.add(FrontendMetrics("m", book, lambda: 0).collect)
    pages = [process.render()] * _PROCESSES

    def count() -> None:
        book.generation_tokens += 1

    works: Mapping[str, tuple[Callable[[], object], int]] = {
        f"{HISTOGRAM}, ours": (lambda: own.observe(0.03), 100_000),
        f"{HISTOGRAM}, theirs": (lambda: theirs.observe(0.03), 100_000),
        f"{COUNTER}, ours": (count, 100_000),
        f"{COUNTER}, theirs": (counter.inc, 100_000),
        "an event that is not traced": (lambda: happened("x"), 100_000),
        "a frontend's page": (process.render, 50),
        f"a node's page of {_PROCESSES} such": (lambda: merged(pages), 50),
    }
    found = _lowest(works, _QUICK_ROUNDS if given.quick else _ROUNDS)
    report = Report("What it costs to count")
    report.table(
        "theirs: prometheus_client's", ["what", "µs"], [list(item) for item in found.items()]
    )
    for what in (HISTOGRAM, COUNTER):
        share = found[f"{what}, ours"] / found[f"{what}, theirs"]
        report.goal(Goal(f"{what}, of theirs", share, at_most=1.0))
    return report.finish(given.json)


def _lowest(
    works: Mapping[str, tuple[Callable[[], object], int]], rounds: int
) -> Mapping[str, float]:
    found = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, (work, times) in works.items():
            found[name] = min(found[name], _microseconds(work, times))
    return found


def _microseconds(work: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times * 1e6


if __name__ == "__main__":
    raise SystemExit(main())
