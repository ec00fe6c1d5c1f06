"""Sends one request, and makes a record of what came."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stafette.platform.bench.client import Client
from stafette.platform.bench.events import EventReader
from stafette.platform.bench.wire import WireBroken

Api = Literal["chat", "completions"]
Message = Mapping[str, str]

PATHS: Mapping[Api, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_DONE = b"[DONE]"
_ERROR_CHARS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How all requests of a benchmark are asked."""

    model: str
    api: Api = "chat"
    stream: bool = True
    ignore_eos: bool = True  # an answer is as long as was asked for
    extra: Mapping[str, Any] = field(default_factory=dict)  # more fields of each body

    def body(self, messages: Sequence[Message], output_tokens: int) -> bytes:
        told: dict[str, Any] = {"model": self.model, "stream": self.stream}
        if self.api == "chat":
            told |= {"messages": list(messages), "max_completion_tokens": output_tokens}
        else:
            told |= {"prompt": "\n".join(each["content"] for each in messages)}
            told["max_tokens"] = output_tokens
        if self.stream:
            told["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            told["ignore_eos"] = True
        return json.dumps(told | dict(self.extra)).encode()


@dataclass(slots=True)
class Heard:
    """An answer; `error` is its kind where there is none."""

    began: float
    chunks_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    error: str = ""
    lost: bool = False  # the connection broke, there was none, or nothing came


async def ask(
    client: Client, manner: Manner, messages: Sequence[Message], output_tokens: int
) -> Heard:
    """Never raises for what a server or a network does: that is what is measured."""
    body = manner.body(messages, output_tokens)
    reader = EventReader()
    events: list[tuple[bytes, float]] = []
    whole: list[bytes] = []

    def take(piece: bytes, now: float) -> None:
        whole.append(piece)
        events.extend((data, now) for data in reader.feed(piece))

    heard = Heard(time.perf_counter())
    try:
        head = await client.ask(b"POST", PATHS[manner.api], body, take)
    except TimeoutError:
        heard.error, heard.lost = "timeout", True
    except WireBroken as error:
        heard.error, heard.lost = f"connection: {error.reason}", True
    except OSError as error:
        heard.error, heard.lost = f"connection: {error.strerror or error}", True
    heard.ended_s = time.perf_counter() - heard.began
    if heard.error:
        return heard
    if head.status != 200:
        heard.error = f"HTTP {head.status}: {refusal(b''.join(whole))}"
    elif head.content_type == "text/event-stream":
        read_events(heard, events)
    else:
        _read_whole(heard, b"".join(whole))
    return heard


def refusal(body: bytes) -> str:
    """Return what a server says is wrong."""
    text = body.decode(errors="replace").strip()
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if isinstance(told, dict):
        inner = told.get("error", told)
        text = str(inner.get("message") or text) if isinstance(inner, dict) else str(inner)
    return text[:_ERROR_CHARS] or "no reason given"


def read_events(heard: Heard, events: list[tuple[bytes, float]]) -> None:
    """Read what came only now: nothing is parsed while others are measured."""
    texts, done = [], False
    for data, at in events:
        if data == _DONE:
            done = True
            continue
        try:
            told = json.loads(data)
        except ValueError:
            heard.error = "an event is no JSON"
            return
        if "error" in told:
            heard.error = f"stream: {refusal(data)}"
            return
        _read_usage(heard, told.get("usage"))
        text = "".join(_pieces(told))
        if text:
            texts.append(text)
            heard.chunks_s.append(at - heard.began)
    heard.text = "".join(texts)
    if not done:
        heard.error = "the stream broke off"
    _check(heard)


def _read_whole(heard: Heard, body: bytes) -> None:
    try:
        told = json.loads(body)
    except ValueError:
        heard.error = "the answer is no JSON"
        return
    _read_usage(heard, told.get("usage"))
    heard.text = "".join(_pieces(told))
    heard.chunks_s.append(heard.ended_s)
    _check(heard)


def _check(heard: Heard) -> None:
    if not heard.error and not heard.chunks_s:
        heard.error = "the answer is empty"
    if not heard.error and not heard.output_tokens:
        heard.output_tokens = len(heard.chunks_s)  # no usage: an event is a token


def _pieces(told: Mapping[str, Any]) -> list[str]:
    """Return the texts of an event or an answer: content, reasoning, arguments of tools."""
    found = []
    for choice in told.get("choices") or ():
        if "text" in choice:
            found.append(choice["text"] or "")
            continue
        part = choice.get("delta") or choice.get("message") or {}
        found.append(part.get("reasoning_content") or part.get("reasoning") or "")
        found.append(part.get("content") or "")
        for call in part.get("tool_calls") or ():
            function = call.get("function") or {}
            found.append((function.get("name") or "") + (function.get("arguments") or ""))
    return found


def _read_usage(heard: Heard, usage: Mapping[str, Any] | None) -> None:
    if not usage:
        return
    heard.prompt_tokens = int(usage.get("prompt_tokens") or 0)
    heard.output_tokens = int(usage.get("completion_tokens") or 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    heard.cached_tokens = heard.cached_tokens if cached is None else int(cached)
