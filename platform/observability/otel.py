"""Spans by OpenTelemetry, sent to a collector in the background. Needs the extra `otel`."""

import asyncio
import time
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stafette.platform.observability.config import TracingConfig
from stafette.workers.handover.imports import Pulled
from stafette.workers.logging_context import TRACE
from stafette.workers.tracing import NOTHING, Attributes, Span

_DELAY_MS = 1_000  # of what has ended, until it is sent
_QUEUED = 4_096  # spans that wait; more are dropped, before anything else suffers
_NS = 1_000_000_000
_propagator = TraceContextTextMapPropagator()


class OtelPart(Span):
    """One span."""

    def __init__(self, tracer: OtelTracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def traceparent(self) -> str:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, set_span_in_context(self._span))
        return carrier["traceparent"]

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(dict(attributes))

    def event(self, name: str, attributes: Attributes = NOTHING) -> None:
        self._span.add_event(name, dict(attributes))

    def part(
        self, name: str, attributes: Attributes = NOTHING, began: float | None = None
    ) -> "OtelPart":
        span = self._tracer.start_span(
            name,
            set_span_in_context(self._span),
            SpanKind.INTERNAL,
            dict(attributes),
            start_time=None if began is None else _since(time.monotonic() - began),
        )
        return OtelPart(self._tracer, span)

    def end(self, error: BaseException | None = None) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):  # it was wanted no more
            self._span.set_attribute("stafette.aborted", True)
        elif error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end()


class Tracing:
    """One process' way to the collector. Any thread may use it."""

    def __init__(self, config: TracingConfig, process: str, pool: str) -> None:
        about = {
            "service.name": "stafette",
            "service.instance.id": process,
            "stafette.pool": pool,
        }
        sampler = ParentBased(TraceIdRatioBased(config.sample_ratio))
        self._provider = TracerProvider(sampler, Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _exporter(config),
                max_queue_size=_QUEUED,
                schedule_delay_millis=_DELAY_MS,
                export_timeout_millis=config.export_timeout_s * 1e3,
            )
        )
        self._tracer = self._provider.get_tracer("stafette")
        self._open: dict[str, OtelPart] = {}  # of a worker, by request

    def serve(
        self, name: str, headers: Mapping[str, str], attributes: Attributes, ago_s: float
    ) -> OtelPart | None:
        """Begin what a client has asked for so long ago; None when its trace is not sampled."""
        return self._begin(name, headers, SpanKind.SERVER, attributes, ago_s)

    def begin(self, name: str, request_id: str, traceparent: str) -> OtelPart | None:
        headers = {"traceparent": traceparent}
        span = self._begin(name, headers, SpanKind.SERVER, {"stafette.request.id": request_id})
        if span is not None:
            self._open[request_id] = _Listed(span, self._open, request_id)
            return self._open[request_id]
        return None

    def pulled(self, request_id: str, pulled: Pulled, began: float) -> None:
        """A prompt's KV has come from elsewhere: that was a part of its request."""
        span = self._open.get(request_id)
        if span is None or not (pulled.num_pulled or pulled.shortfall):
            return
        attributes: dict[str, str | int] = {"stafette.pulled_tokens": pulled.num_pulled}
        attributes["stafette.held_tokens"] = pulled.num_held
        if pulled.shortfall:
            attributes["stafette.shortfall"] = pulled.shortfall
        span.part("kv transfer", attributes, began).end()

    async def close(self) -> None:
        """Send what is left, as long as that may take."""
        await asyncio.to_thread(self._provider.shutdown)

    def _begin(
        self,
        name: str,
        headers: Mapping[str, str],
        kind: SpanKind,
        attributes: Attributes,
        ago_s: float = 0.0,
    ) -> OtelPart | None:
        parent = _propagator.extract(headers)
        start = _since(ago_s)
        span = self._tracer.start_span(name, parent, kind, dict(attributes), start_time=start)
        if not span.is_recording():
            return None
        part = OtelPart(self._tracer, span)
        TRACE.set(part.trace_id)
        return part


class _Listed(OtelPart):
    """A worker's span, found by its request until it ends."""

    def __init__(self, part: OtelPart, others: dict[str, OtelPart], request_id: str) -> None:
        super().__init__(part._tracer, part._span)
        self._others = others
        self._request_id = request_id

    def end(self, error: BaseException | None = None) -> None:
        self._others.pop(self._request_id, None)
        super().end(error)


def _exporter(config: TracingConfig) -> SpanExporter:
    assert config.endpoint is not None
    if config.protocol == "grpc":
        return GrpcExporter(config.endpoint, timeout=config.export_timeout_s)
    url = config.endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
    return HttpExporter(url, timeout=config.export_timeout_s)


def _since(ago_s: float) -> int:
    return time.time_ns() - int(ago_s * _NS)
