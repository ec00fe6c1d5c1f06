"""Shows the measurements to Prometheus: under vLLM's names where they mean the same."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from stafette.platform.frontend.generator import Status
from stafette.platform.frontend.metrics.book import Histogram, Metrics

_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("time_to_first_token", "From arrival to first token."),
    "vllm:inter_token_latency_seconds": ("inter_token_latency", "Between two tokens."),
    "vllm:request_time_per_output_token_seconds": (
        "time_per_output_token",
        "A request's mean time between two tokens.",
    ),
    "vllm:e2e_request_latency_seconds": ("e2e_latency", "From arrival to last token."),
    "vllm:request_prompt_tokens": ("request_prompt_tokens", "Tokens of a request's prompts."),
    "vllm:request_generation_tokens": ("request_generation_tokens", "Tokens of its answers."),
}
_GAUGES = {
    "vllm:num_requests_running": ("num_running", "Sequences that the engine computes."),
    "vllm:num_requests_waiting": ("num_waiting", "Sequences that wait for their turn."),
    "vllm:kv_cache_usage_perc": ("kv_cache_usage", "Share of KV blocks in use, 0 to 1."),
}
_COUNTERS = {
    "vllm:prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the cache."),
    "vllm:prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the cache."),
    "vllm:num_preemptions": ("num_preemptions", "Sequences that had to give up their blocks."),
}


class Exposition:
    """Renders one frontend's metrics in the format that the scraper asks for."""

    def __init__(
        self,
        model: str,
        metrics: Metrics,
        status: Callable[[], Status],
        in_flight: Callable[[], int],
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Frontend(model, metrics, status, in_flight))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


class _Frontend(Collector):
    def __init__(
        self,
        model: str,
        metrics: Metrics,
        status: Callable[[], Status],
        in_flight: Callable[[], int],
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._status = status
        self._in_flight = in_flight

    def collect(self) -> Iterable[Metric]:
        yield from self._of_generator(self._status())
        yield from self._of_requests()
        yield from self._of_http()

    def _of_generator(self, status: Status) -> Iterator[Metric]:
        for name, (field, about) in _GAUGES.items():
            yield self._gauge(name, about, getattr(status, field))
        for name, (field, about) in _COUNTERS.items():
            yield self._counter(name, about, getattr(status, field))

    def _of_requests(self) -> Iterator[Metric]:
        metrics = self._metrics
        for name, (field, about) in _HISTOGRAMS.items():
            yield self._histogram(name, about, getattr(metrics, field))
        yield self._counter("vllm:prompt_tokens", "Prompt tokens.", metrics.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens made.", metrics.generation_tokens)
        success = CounterMetricFamily(
            "vllm:request_success",
            "Answers that have ended, by reason.",
            labels=["model_name", "finished_reason"],
        )
        for reason in ("stop", "length", "abort", "error"):
            success.add_metric([self._model, reason], metrics.finished[reason])
        yield success

    def _of_http(self) -> Iterator[Metric]:
        metrics = self._metrics
        responses = CounterMetricFamily(
            "stafette_http_responses",
            "Responses, by path and status; 499: the client left.",
            labels=["path", "status"],
        )
        for (path, status), count in sorted(metrics.responses.items()):
            responses.add_metric([path, str(status)], count)
        yield responses
        rejected = CounterMetricFamily(
            "stafette_rejected", "Requests not let in, by reason.", labels=["reason"]
        )
        for reason, count in sorted(metrics.rejected.items()):
            rejected.add_metric([reason], count)
        yield rejected
        yield self._gauge("stafette_requests_in_flight", "Requests let in.", self._in_flight())
        yield self._counter(
            "stafette_client_disconnects", "Clients that left early.", metrics.disconnects
        )

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, about: str, value: float) -> Metric:
        family = CounterMetricFamily(name, about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _histogram(self, name: str, about: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, about, labels=["model_name"])
        buckets, total = [], 0
        bounds = [*map(str, map(float, histogram.bounds)), "+Inf"]
        for bound, count in zip(bounds, histogram.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([self._model], buckets, histogram.sum)
        return family
