"""A frontend's metrics: what it measures of requests, under vLLM's names where they mean the same.

What engines count is told by the processes that they run in.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric

from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.observability.families import counter, gauge, histogram, of_model

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
_REASONS = ("stop", "length", "abort", "error")


class FrontendMetrics:
    def __init__(self, model: str, metrics: Metrics, in_flight: Callable[[], int]) -> None:
        self._model = model
        self._metrics = metrics
        self._in_flight = in_flight

    def collect(self) -> Iterator[Metric]:
        yield from of_model(self._model, *self._of_requests())
        yield from self._of_http()

    def _of_requests(self) -> Iterator[Metric]:
        metrics = self._metrics
        for name, (field, about) in _HISTOGRAMS.items():
            yield histogram(name, about, getattr(metrics, field))
        yield counter("vllm:prompt_tokens", "Prompt tokens.", metrics.prompt_tokens)
        yield counter("vllm:generation_tokens", "Tokens made.", metrics.generation_tokens)
        ended = {reason: metrics.finished[reason] for reason in _REASONS}
        about = "Answers that have ended, by reason."
        yield counter("vllm:request_success", about, ended, "finished_reason")

    def _of_http(self) -> Iterator[Metric]:
        metrics = self._metrics
        responses = {(path, str(status)): n for (path, status), n in metrics.responses.items()}
        about = "Responses, by path and status; 499: the client left."
        yield counter("stafette_http_responses", about, responses, "path", "status")
        about = "Requests not let in, by reason."
        yield counter("stafette_rejected", about, metrics.rejected, "reason")
        yield gauge("stafette_requests_in_flight", "Requests let in.", self._in_flight())
        about = "Clients that left early."
        yield counter("stafette_client_disconnects", about, metrics.disconnects)
        about = "Requests answered, by API key's name; -: without keys."
        yield counter("stafette_tenant_requests", about, metrics.tenant_requests, "tenant")
        about = "Their tokens, of prompts and of answers."
        yield counter("stafette_tenant_tokens", about, metrics.tenant_tokens, "tenant", "kind")
