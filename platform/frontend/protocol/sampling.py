"""How an answer's tokens are chosen: OpenAI's fields, and vLLM's beyond them."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stafette.platform.frontend.protocol.base import Fields

_MAX_INT = 2**31 - 1
TokenId = Annotated[int, Field(ge=0, le=_MAX_INT)]
StopString = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=_MAX_INT)]


class StructuredOutputs(Fields):
    """The language of the answer: exactly one of these, as in vLLM."""

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON schema.")
    json_object: bool | None = None
    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    grammar: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="A grammar in Lark's form."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        if len(self.given) != 1:
            raise ValueError("must have exactly one of json, json_object, regex, choice, grammar")
        return self

    @property
    def given(self) -> dict[str, str]:
        """Return what was asked for, by the engine's name for it, as text."""
        schema = self.json_ if isinstance(self.json_, str | None) else json.dumps(self.json_)
        values = {
            "json_schema": schema,
            "json_object": "" if self.json_object else None,
            "regex": self.regex,
            "choice": json.dumps(self.choice) if self.choice is not None else None,
            "grammar": self.grammar,
        }
        return {kind: value for kind, value in values.items() if value is not None}


class SamplingFields(Fields):
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        dict[
            Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]
        ]
        | None
    ) = Field(None, description="From token ids to what is added to their logits.")
    stop: StopString | list[StopString] | None = None

    # vLLM's
    top_k: Annotated[int, Field(ge=-1, le=_MAX_INT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=_MAX_INT)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None


class StreamOptions(Fields):
    include_usage: bool = Field(False, description="End the stream with the tokens' counts.")


class TextFormat(Fields):
    type: Literal["text"]


class JsonObjectFormat(Fields):
    type: Literal["json_object"]
