"""What a traced request costs the frontend's process, with its spans sent to a collector.

    python benchmarks/serving/tracing.py [--quick] [--json FILE]

The collector is a process of its own that takes spans by OTLP over HTTP and forgets them. CPU is
all of this process', the thread that sends among it; the lowest of some rounds, in turns.
"""

import argparse
import asyncio
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection

from benchmarks.common.report import Report
from stafette.platform.observability.config import TracingConfig
from stafette.platform.observability.otel import Tracing
from stafette.workers.tracing import Attributes

_REQUESTS = 2_000  # of each round: all fit into the queue of what is to be sent
_ROUNDS, _QUICK_ROUNDS = 5, 2
_ASKED: Attributes = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "stafette",
    "gen_ai.request.model": "m",
    "gen_ai.request.max_tokens": 200,
    "gen_ai.request.temperature": 1.0,
    "http.route": "/v1/chat/completions",
}
_PLACED: Attributes = {
    "stafette.decode": "d0",
    "stafette.prefill": "p0",
    "stafette.cached_tokens": 9,
}


class _Sink(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _collect(told: Connection) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Sink)
    told.send(server.server_port)
    server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    count = _QUICK_ROUNDS if given.quick else _ROUNDS
    here, there = Pipe()
    collector = Process(target=_collect, args=(there,), daemon=True)
    collector.start()
    endpoint = f"http://127.0.0.1:{here.recv()}"
    try:
        rounds = [_microseconds(endpoint, ratio) for _ in range(count) for ratio in (1.0, 0.0)]
    finally:
        collector.kill()
        collector.join()
    report = Report("What a traced request costs")
    rows = [["traced", min(rounds[::2])], ["not sampled", min(rounds[1::2])]]
    report.table("the lowest of all rounds", ["a request", "CPU µs"], rows)
    return report.finish(given.json)


def _microseconds(endpoint: str, ratio: float) -> float:
    config = TracingConfig(endpoint=endpoint, protocol="http", sample_ratio=ratio)
    tracing = Tracing(config, "frontend-0", "frontend")
    began = time.process_time()
    for _ in range(_REQUESTS):
        span = tracing.serve("chat m", {}, _ASKED, 0.001)
        if span is None:
            continue
        place = span.part("place")
        place.note(_PLACED)
        place.end()
        assert span.traceparent
        span.event("first token")
        span.note({"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 200})
        span.end()
    asyncio.run(tracing.close())
    return (time.process_time() - began) / _REQUESTS * 1e6


if __name__ == "__main__":
    raise SystemExit(main())
