"""Every path that the API has."""

from stafette.platform.frontend.protocol import answers
from stafette.platform.frontend.protocol.chat import ChatRequest
from stafette.platform.frontend.protocol.completions import CompletionRequest
from stafette.platform.frontend.protocol.embeddings import EmbeddingRequest
from stafette.platform.frontend.protocol.planning import PinAnswer, PinRequest, Planning
from stafette.platform.frontend.protocol.responses import ResponsesRequest
from stafette.platform.frontend.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
)
from stafette.platform.frontend.routes import about, console, planning, tokens
from stafette.platform.frontend.routes.chat import chat_completions
from stafette.platform.frontend.routes.completions import completions
from stafette.platform.frontend.routes.embeddings import embeddings
from stafette.platform.frontend.routes.responses import responses
from stafette.platform.frontend.routes.services import Route

ROUTES = (
    Route(
        method="POST",
        path="/v1/chat/completions",
        handler=chat_completions,
        summary="Answer a conversation.",
        body=ChatRequest,
        answer=answers.ChatCompletion,
        admitted=True,
        streams=True,
    ),
    Route(
        method="POST",
        path="/v1/completions",
        handler=completions,
        summary="Continue a text.",
        body=CompletionRequest,
        answer=answers.Completion,
        admitted=True,
        streams=True,
    ),
    Route(
        method="POST",
        path="/v1/responses",
        handler=responses,
        summary="Answer a conversation, in the form of OpenAI's newer API.",
        body=ResponsesRequest,
        answer=answers.Response,
        admitted=True,
        streams=True,
    ),
    Route(
        method="POST",
        path="/v1/embeddings",
        handler=embeddings,
        summary="Turn texts into vectors: the mean of the model's last hidden states.",
        body=EmbeddingRequest,
        answer=answers.Embeddings,
        admitted=True,
    ),
    Route(
        method="POST",
        path="/tokenize",
        handler=tokens.tokenize,
        summary="Turn a text or a conversation into tokens.",
        body=TokenizeRequest,
        answer=TokenizeAnswer,
        errors=(404, 408, 413, 422),
    ),
    Route(
        method="POST",
        path="/detokenize",
        handler=tokens.detokenize,
        summary="Turn tokens into text.",
        body=DetokenizeRequest,
        answer=DetokenizeAnswer,
        errors=(404, 408, 413),
    ),
    Route(
        method="GET",
        path="/v1/models",
        handler=about.models,
        summary="The models and adapters that requests may name.",
        answer=answers.Models,
    ),
    Route(
        method="GET",
        path="/v1/models/{model}",
        handler=about.model,
        summary="One of them.",
        answer=answers.Model,
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/v1/workers",
        handler=about.workers,
        summary="The workers that this frontend is connected to, and how busy they are.",
        answer=answers.Workers,
    ),
    Route(
        method="GET",
        path="/v1/router/explain",
        handler=about.explain,
        summary="Why recent requests went to the workers they went to.",
        answer=answers.Decisions,
        errors=(400,),
    ),
    Route(
        method="GET",
        path="/v1/planner",
        handler=planning.overview,
        summary="What sizes and roles the planner wants, and why; `last` limits the plans.",
        answer=Planning,
        errors=(400, 503),
    ),
    Route(
        method="POST",
        path="/v1/planner/pins",
        handler=planning.pin,
        summary="Hold a pool at a size, whatever the planner thinks, for a while.",
        body=PinRequest,
        answer=PinAnswer,
        errors=(404, 503),
    ),
    Route(
        method="DELETE",
        path="/v1/planner/pins/{pool}",
        handler=planning.unpin,
        summary="Let the planner decide on a pool again.",
        answer=PinAnswer,
        errors=(400, 404, 503),
    ),
    Route(
        method="GET",
        path="/health",
        handler=about.live,
        summary="Whether the engine is alive.",
        answer=answers.Health,
        guarded=False,
        errors=(503,),
    ),
    Route(
        method="GET",
        path="/live",
        handler=about.live,
        summary="Whether the engine is alive: if not, restart.",
        answer=answers.Health,
        guarded=False,
        errors=(503,),
    ),
    Route(
        method="GET",
        path="/ready",
        handler=about.ready,
        summary="Whether requests should be sent here.",
        answer=answers.Health,
        guarded=False,
        errors=(503,),
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=about.metrics,
        summary="Metrics for Prometheus.",
        guarded=False,
    ),
    Route(
        method="GET",
        path="/version",
        handler=about.tell_version,
        summary="The version of stafette.",
        answer=answers.Version,
        guarded=False,
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler=about.openapi,
        summary="This document.",
        media="application/json",
        guarded=False,
    ),
    Route(
        method="GET",
        path="/console",
        handler=console.page,
        summary="A page that shows the fleet, live.",
        media="text/html",
        guarded=False,
    ),
    Route(
        method="GET",
        path="/console/{file}",
        handler=console.file,
        summary="What that page loads.",
        media="text/javascript",
        guarded=False,
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/console/data",
        handler=console.data,
        summary="What that page shows, behind what it knows.",
        media="application/json",
    ),
)
