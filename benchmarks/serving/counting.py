"""What it costs to count, to tell what was counted, and not to trace.

    python benchmarks/serving/counting.py

Ours beside prometheus_client's own objects, which a token would touch several times; the lowest of
some rounds, in turns, so that other load on the machine disturbs both alike.
"""

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from benchmarks.common.machine import line
from benchmarks.common.tables import render
from stafette.kvtransfer.histogram import Histogram as OwnHistogram
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.frontend.metrics.exposition import FrontendMetrics
from stafette.platform.observability.merging import merged
from stafette.platform.observability.process import ProcessMetrics
from stafette.workers.tracing import happened

_ROUNDS = 7
_PROCESSES = 8  # of the node whose page is put together


def main() -> None:
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

    print(line(), "\n")
    _show(
        {
            "a value into a histogram, ours": (lambda: own.observe(0.03), 100_000),
            "a value into a histogram, prometheus_client's": (
                lambda: theirs.observe(0.03),
                100_000,
            ),
            "a counter, ours": (count, 100_000),
            "a counter, theirs": (counter.inc, 100_000),
            "an event that is not traced": (lambda: happened("x"), 100_000),
            "a frontend's page": (process.render, 50),
            f"a node's page of {_PROCESSES} such": (lambda: merged(pages), 50),
        }
    )


def _show(works: Mapping[str, tuple[Callable[[], object], int]]) -> None:
    found = dict.fromkeys(works, float("inf"))
    for _ in range(_ROUNDS):
        for name, (work, times) in works.items():
            found[name] = min(found[name], _microseconds(work, times))
    print(render(("what", "µs"), list(found.items())))


def _microseconds(work: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times * 1e6


if __name__ == "__main__":
    main()
