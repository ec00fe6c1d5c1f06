"""Answer one prompt on the terminal, token by token."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stafette.platform.flags import add_flags, given
from stafette.workers import EngineConfig, SamplingParams, StructuredOutput
from stafette.workers.errors import RequestError

if TYPE_CHECKING:
    from stafette.workers import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the question; - reads it from standard input")
    parser.add_argument("--raw", action="store_true", help="continue the text: no chat template")
    parser.add_argument("--system", help="a system message for the chat template")
    parser.add_argument("--quiet", action="store_true", help="print the answer and nothing else")
    parser.add_argument("--lora", metavar="DIR", help="a PEFT adapter to answer with")
    _add_sampling(parser.add_argument_group("sampling"))
    add_flags(parser, EngineConfig, "engine")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-tokens", type=int, default=256)
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--top-k", type=int, default=0)
    group.add_argument("--repetition-penalty", type=float, default=1.0)
    group.add_argument("--sampling-seed", type=int)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT")
    group.add_argument("--json-schema", metavar="FILE", help="answer in JSON of this schema")
    group.add_argument("--regex", help="answer with a text that matches")


def run(arguments: argparse.Namespace) -> int:
    params = _sampling(arguments)
    text = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    flags = given(arguments, EngineConfig)
    from stafette.workers import LLM  # here, because torch takes seconds, and --help none

    if arguments.lora:
        flags["enable_lora"] = True
    with LLM(**flags) as llm:
        if arguments.lora:
            llm.load_lora(arguments.lora, arguments.lora)
        tally = _Tally()
        for delta in llm.stream(_prompt(llm, text, arguments), params, lora=arguments.lora):
            print(delta.text, end="", flush=True)
            tally.count(len(delta.token_ids))
        print()
        if not arguments.quiet:
            print(tally.summary(), file=sys.stderr)
    return 0


def _prompt(llm: "LLM", text: str, arguments: argparse.Namespace) -> Any:
    if arguments.raw or not llm.tokenizer.has_chat_template:
        return text
    messages = [{"role": "user", "content": text}]
    if arguments.system:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return llm.chat_prompt(messages)


def _sampling(arguments: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.sampling_seed,
        stop=tuple(arguments.stop),
        structured=_structured(arguments),
    )


def _structured(arguments: argparse.Namespace) -> StructuredOutput | None:
    if arguments.json_schema:
        path = Path(arguments.json_schema)
        try:
            schema = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RequestError("--json-schema", str(path), f"cannot be read: {error}") from error
        return StructuredOutput(kind="json_schema", value=json.dumps(schema))
    if arguments.regex:
        return StructuredOutput(kind="regex", value=arguments.regex)
    return None


class _Tally:
    """Counts tokens, and knows how long the first one took, from the process's own start."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._tokens = 0

    def count(self, tokens: int) -> None:
        if tokens and self._first is None:
            self._first = time.time()
        self._tokens += tokens

    def summary(self) -> str:
        if self._first is None:
            return "[no token]"
        import psutil

        decode = time.time() - self._first
        rate = (self._tokens - 1) / decode if decode > 0 and self._tokens > 1 else 0.0
        start = self._first - psutil.Process().create_time()
        return f"[{self._tokens} tokens, {rate:.0f} tok/s; first token {start:.1f} s after start]"
