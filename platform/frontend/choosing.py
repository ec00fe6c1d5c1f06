"""From the fields of a request to the engine's SamplingParams."""

import json
from typing import Any

from stafette.platform.frontend.errors import wrong
from stafette.platform.frontend.protocol.chat import JsonSchemaFormat, ResponseFormat
from stafette.platform.frontend.protocol.responses import SchemaFormat
from stafette.platform.frontend.protocol.sampling import (
    JsonObjectFormat,
    SamplingFields,
    StructuredOutputs,
    TextFormat,
)
from stafette.platform.frontend.served import Served
from stafette.workers.sampling.params import SamplingParams, StructuredKind, StructuredOutput

_AS_THEY_ARE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
)


def sampling_values(fields: SamplingFields) -> dict[str, Any]:
    """Return what the request sets; what it leaves out, or sets to null, keeps its default."""
    given = {name: getattr(fields, name) for name in _AS_THEY_ARE}
    values = {name: value for name, value in given.items() if value is not None}
    if fields.stop is not None:
        values["stop"] = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)
    if fields.stop_token_ids is not None:
        values["stop_token_ids"] = tuple(fields.stop_token_ids)
    if fields.logit_bias is not None:
        values["logit_bias"] = {int(token): bias for token, bias in fields.logit_bias.items()}
    return values


def sampling_params(
    values: dict[str, Any], max_tokens: int | None, served: Served
) -> SamplingParams:
    """Return the engine's parameters. More tokens than the model can hold are as good as all."""
    longest = served.max_model_len
    most = longest if max_tokens is None else min(max_tokens, longest)
    if values.get("min_tokens", 0) > most:
        raise wrong("min_tokens", values["min_tokens"], f"must not exceed max_tokens = {most}")
    return SamplingParams(**{**served.sampling, **values}, max_tokens=most)


def structured_of(
    wanted: ResponseFormat | SchemaFormat | None, outputs: StructuredOutputs | None
) -> StructuredOutput | None:
    """Return the language that the answer must belong to; None: any."""
    if outputs is not None:
        if wanted is not None and not isinstance(wanted, TextFormat):
            raise wrong("structured_outputs", outputs.given, "give it or response_format, not both")
        ((kind, value),) = outputs.given.items()
        return _structured(kind, value)  # type: ignore[arg-type]
    match wanted:
        case JsonObjectFormat():
            return _structured("json_object", "")
        case JsonSchemaFormat():
            return _structured("json_schema", json.dumps(wanted.json_schema.schema_))
        case SchemaFormat():
            return _structured("json_schema", json.dumps(wanted.schema_))
    return None


def _structured(kind: StructuredKind, value: str) -> StructuredOutput:
    return StructuredOutput(kind=kind, value=value)
