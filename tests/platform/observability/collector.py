"""A collector of traces, by OpenTelemetry's own protocol: gRPC, and HTTP."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass(frozen=True)
class Got:
    """A span, as it came."""

    name: str
    process: str
    trace_id: str
    span_id: str
    parent: str
    began: int
    ended: int
    attributes: dict
    events: list  # (name, attributes)
    failed: bool


class Collector(TraceServiceServicer):
    def __init__(self, protocol: str) -> None:
        self.spans: list[Got] = []
        self._close = self._serve_grpc() if protocol == "grpc" else self._serve_http()

    def Export(self, request, context):  # noqa: N802
        self._take(request)
        return ExportTraceServiceResponse()

    def of(self, name: str) -> list[Got]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Got:
        (span,) = self.of(name)
        return span

    def close(self) -> None:
        self._close()

    def _serve_grpc(self):
        server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, server)
        self.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        return lambda: server.stop(None).wait()

    def _serve_http(self):
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802
                body = self.rfile.read(int(self.headers["content-length"]))
                right = self.path == "/v1/traces"
                if right:
                    take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200 if right else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"

        def close() -> None:
            server.shutdown()
            thread.join()
            server.server_close()

        return close

    def _take(self, request) -> None:
        for resource in request.resource_spans:
            process = _plain(resource.resource.attributes)["service.instance.id"]
            for scope in resource.scope_spans:
                self.spans += [_got(span, process) for span in scope.spans]


def _got(span, process: str) -> Got:
    return Got(
        name=span.name,
        process=process,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        attributes=_plain(span.attributes),
        events=[(event.name, _plain(event.attributes)) for event in span.events],
        failed=span.status.code == 2,
    )


def _plain(attributes) -> dict:
    return {each.key: _value(each.value) for each in attributes}


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
