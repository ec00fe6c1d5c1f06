"""What travels between a frontend and a worker, as msgpack. Each message is one list.

    frontend -> worker   [GENERATE, number, prompt, output, params, options]   ids as u32 words
                         [PREFILL, number, prompt, output, params, options]    answered at its end
                         [ABORT, number]
                         [ASK, number, operation, payload]
    worker -> frontend   [STEP, [[number, token ids, ...], ...]]   all that one step brought
                         [ANSWER, number, value]
                         [REFUSE, number, [field, value, remedy]]   the request is wrong
                         [DECLINE, number, reason]                  not here: ask another worker
    both                 [BEAT, load]    now and then: it lives; load is {} from a frontend
                         [message, ...]  several that waited, in their order: a parcel

The number is the frontend's, and means one request or question on that stream.
"""

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgpack  # type: ignore[import-untyped]

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import each, exact, number, pack, text, unpack, whole
from stafette.workers.batch import TokenLogprobs
from stafette.workers.errors import RequestError
from stafette.workers.request import OutputDelta, Request
from stafette.workers.sampling.params import SamplingParams

GENERATE, PREFILL, ABORT, ASK = "generate", "prefill", "abort", "ask"
STEP, ANSWER, REFUSE, DECLINE, BEAT = "step", "answer", "refuse", "decline", "beat"
NUMBER_END = 1 << 63

_MAX_TEXT_BYTES = 64 << 10
_MAX_NAME_BYTES = 256
_PARCEL_BYTES = 16 << 10  # of messages that leave together; a larger one leaves alone
_U32_END = 1 << 32
_FINISHED = ("stop", "length", "abort", "error")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request or question was not taken: a RequestError on its way."""

    field: str
    value: str
    remedy: str

    @classmethod
    def of(cls, error: RequestError) -> "Refusal":
        return cls(error.field, str(error.value)[:_MAX_NAME_BYTES], error.remedy)

    def pack(self) -> list[object]:
        return [self.field, self.value, self.remedy]

    @classmethod
    def read(cls, value: object) -> "Refusal":
        match value:
            case [_, _, _]:
                return cls(*(text(part, "refusal", _MAX_TEXT_BYTES) for part in value))
        raise MalformedMessage("refusal", "[field, value, remedy]")


@dataclass(frozen=True, slots=True)
class Order:
    """A request, and what its connectors are told: from whom its KV comes, for whom it is."""

    request: Request
    kv_params: Mapping[str, object] = field(default_factory=dict)  # by connector
    cached_only: bool = False  # of a prefill: pass on, or get, what is cached; compute nothing
    last_resort: bool = False  # no other worker can take it: one that drains should, if it can


def pack_order(kind: str, number: int, order: Order) -> bytes:
    """Return the message that asks for an answer; the text is the frontend's business."""
    request = order.request
    options = {
        "id": request.request_id,
        "priority": request.priority,
        "lora": request.lora,
        "salt": request.cache_salt,
        "kv": dict(order.kv_params) or None,
        "cached_only": order.cached_only or None,
        "last_resort": order.last_resort or None,
        "trace": request.traceparent or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    ids = (_words(request.prompt_token_ids), _words(request.output_token_ids))
    return pack([kind, number, *ids, request.params.to_dict(), given])


def read_order(prompt: object, output: object, params: object, options: object) -> Order:
    """Read what `pack_order` made; RequestError names what is wrong in it."""
    given, wanted = exact(options, "options", dict), exact(params, "params", dict)
    request = Request(
        request_id=text(given.get("id"), "id", _MAX_NAME_BYTES),
        prompt_token_ids=_ids(prompt, "prompt"),
        output_token_ids=_ids(output, "output"),
        params=SamplingParams.from_dict(wanted),
        priority=exact(given.get("priority"), "priority", int),
        lora=given.get("lora"),
        cache_salt=given.get("salt"),
        detokenize=False,
        traceparent=text(given.get("trace", ""), "trace", _MAX_NAME_BYTES),
    )
    kv_params = exact(given.get("kv", {}), "kv", dict)
    cached_only = exact(given.get("cached_only", False), "cached_only", bool)
    last_resort = exact(given.get("last_resort", False), "last_resort", bool)
    return Order(request, kv_params, cached_only, last_resort)


def pack_deltas(deltas: Sequence[tuple[int, OutputDelta]]) -> bytes:
    """Return one step's message; an item that says nothing else is a number and its tokens."""
    return pack([STEP, [_item(number, delta) for number, delta in deltas]])


def read_deltas(value: object, request_ids: dict[int, str]) -> list[tuple[int, OutputDelta]]:
    """Return (number, delta) of the requests that are known here, in their order."""
    found = []
    for item in exact(value, "deltas", list):
        delta = _read_item(exact(item, "delta", list), request_ids)
        if delta is not None:
            found.append(delta)
    return found


def parcels(messages: Sequence[bytes]) -> Iterator[bytes]:
    """Put packed messages together, in their order, into fewer that can be sent."""
    waiting: list[bytes] = []
    size = 0
    for message in messages:
        if waiting and size + len(message) > _PARCEL_BYTES:
            yield _parcel(waiting)
            waiting, size = [], 0
        waiting.append(message)
        size += len(message)
    if waiting:
        yield _parcel(waiting)


def read_messages(data: bytes, max_bytes: int) -> list[list[object]]:
    """Return the message that has come, or those of a parcel."""
    value = unpack(data, max_bytes)
    if not isinstance(value, list) or not value:
        raise MalformedMessage("message", "a list that begins with its kind")
    if not isinstance(value[0], list):
        return [value]
    return [exact(message, "message", list) for message in value]


def _parcel(messages: Sequence[bytes]) -> bytes:
    if len(messages) == 1:
        return messages[0]
    head: bytes = msgpack.Packer().pack_array_header(len(messages))
    return head + b"".join(messages)


def _item(number: int, delta: OutputDelta) -> list[object]:
    plain = delta.finish_reason is None and delta.logprobs is None and delta.embedding is None
    if plain and delta.prompt_logprobs is None:
        return [number, delta.token_ids, delta.num_cached_tokens]
    return [
        number,
        delta.token_ids,
        delta.num_cached_tokens,
        delta.finish_reason,
        delta.stop_reason,
        delta.error,
        _pack_logprobs(delta.logprobs),
        _pack_logprobs(delta.prompt_logprobs),
        delta.embedding,
    ]


def _read_item(item: list[object], request_ids: dict[int, str]) -> tuple[int, OutputDelta] | None:
    if len(item) == 3:
        return _read_plain(item[0], item[1], item[2], request_ids)
    match item:
        case [int(key), [*token_ids], cached, reason, stop, error, scores, prompt_scores, vector]:
            name = request_ids.get(key)
            if name is None:
                return None
            if reason is not None and reason not in _FINISHED:
                raise MalformedMessage("finish reason", " | ".join(_FINISHED))
            return key, OutputDelta(
                request_id=name,
                index=0,
                token_ids=[whole(token, "token", _U32_END) for token in token_ids],
                text="",
                num_cached_tokens=whole(cached, "cached", _U32_END),
                finish_reason=reason,  # type: ignore[arg-type]
                stop_reason=stop if isinstance(stop, int | str) else None,
                error=None if error is None else text(error, "error", _MAX_TEXT_BYTES),
                logprobs=_read_logprobs(scores),
                prompt_logprobs=_read_logprobs(prompt_scores),
                embedding=None if vector is None else exact(vector, "embedding", bytes),
            )
    raise MalformedMessage("delta", "[number, token ids, cached, ...]")


def _read_plain(
    key: object, token_ids: object, cached: object, request_ids: dict[int, str]
) -> tuple[int, OutputDelta] | None:
    """Read what nearly every token comes as."""
    number = whole(key, "number", NUMBER_END)
    name = request_ids.get(number)
    if name is None:
        return None
    ids = exact(token_ids, "token ids", list)
    for token in ids:
        if type(token) is not int or not 0 <= token < _U32_END:
            raise MalformedMessage("token", f"a whole number below {_U32_END}")
    return number, OutputDelta(
        name, 0, ids, "", None, None, None, None, whole(cached, "cached", _U32_END)
    )


def _pack_logprobs(scores: list[TokenLogprobs] | None) -> list[object] | None:
    if scores is None:
        return None
    return [[s.token_id, s.logprob, s.rank, list(s.top), list(s.top.values())] for s in scores]


def _read_logprobs(value: object) -> list[TokenLogprobs] | None:
    return None if value is None else list(each(value, "logprobs", _read_score))


def _read_score(value: object) -> TokenLogprobs:
    match value:
        case [token, logprob, rank, [*tokens], [*logprobs]] if len(tokens) == len(logprobs):
            ids = (whole(each_, "token", _U32_END) for each_ in tokens)
            top = dict(zip(ids, (_score(each_) for each_ in logprobs), strict=True))
            return TokenLogprobs(
                whole(token, "token", _U32_END), _score(logprob), whole(rank, "rank", _U32_END), top
            )
    raise MalformedMessage("logprobs", "[token, logprob, rank, tokens, logprobs]")


def _score(value: object) -> float:
    """A log probability may be minus infinity."""
    return value if isinstance(value, float) and value < 0 else number(value, "logprob")


def _words(ids: Sequence[int]) -> bytes:
    try:
        return _little(array("I", ids)).tobytes()
    except (OverflowError, TypeError) as error:
        raise RequestError("prompt_token_ids", str(error), "must be token ids") from None


def _ids(data: object, where: str) -> list[int]:
    raw = exact(data, where, bytes)
    words = array("I")
    if len(raw) % words.itemsize:
        raise MalformedMessage(where, "whole words of 4 bytes")
    words.frombytes(raw)
    return _little(words).tolist()


def _little(words: "array[int]") -> "array[int]":
    """Turn this machine's words into little-endian ones, or back."""
    if sys.byteorder == "big":
        words.byteswap()
    return words
