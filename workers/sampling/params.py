"""SamplingParams: how one request wants its tokens chosen, in vLLM's and OpenAI's names."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """The language that the answer must belong to."""

    kind: Literal["json_schema", "json_object", "regex", "grammar", "choice"]
    value: str = ""  # the schema as JSON, the regex, the Lark grammar, the choices as a JSON list


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Checked when made; `check_against` adds what only the engine knows."""

    n: int = 1
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    max_tokens: int | None = 16  # None: up to max_model_len
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured: StructuredOutput | None = None
    skip_special_tokens: bool = True
