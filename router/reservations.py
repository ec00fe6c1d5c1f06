"""What routers tell each other of their reservations, and its form on the wire: msgpack."""

from dataclasses import dataclass

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import each, exact, number, octets, pack, text, unpack, whole
from stafette.router.load import Stay

MAX_MESSAGE_BYTES = 64 << 20
_MAX_CHAIN_BYTES = 16 << 20
_MAX_NAME_BYTES = 512
_END = 1 << 62


@dataclass(frozen=True, slots=True)
class Reserved:
    request_id: str
    stays: tuple[tuple[str, Stay], ...]  # targets: the one that decodes first


@dataclass(frozen=True, slots=True)
class Computed:
    """The prompt is computed, the first token is there."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Freed:
    request_id: str


@dataclass(frozen=True, slots=True)
class Summary:
    """All that a router has booked, and which of them have their first token."""

    reserved: tuple[Reserved, ...]
    computed: frozenset[str]


Change = Reserved | Computed | Freed | Summary


def encode(router_id: str, change: Change) -> bytes:
    """Return a change's wire form."""
    match change:
        case Reserved():
            body: list[object] = ["reserved", _packed(change)]
        case Computed():
            body = ["computed", change.request_id]
        case Freed():
            body = ["freed", change.request_id]
        case Summary():
            all_of_them = [_packed(reserved) for reserved in change.reserved]
            body = ["summary", all_of_them, sorted(change.computed)]
    return pack([router_id, *body])


def decode(data: bytes) -> tuple[str, Change]:
    """Return the router and the change; MalformedMessage for what is none."""
    match unpack(data, MAX_MESSAGE_BYTES):
        case [router_id, *body]:
            return text(router_id, "router id", _MAX_NAME_BYTES), _read(body)
    raise MalformedMessage("change", "[router id, kind, ...]")


def _read(body: list[object]) -> Change:
    match body:
        case ["reserved", reserved]:
            return _read_reserved(reserved)
        case ["computed", request_id]:
            return Computed(text(request_id, "request id", _MAX_NAME_BYTES))
        case ["freed", request_id]:
            return Freed(text(request_id, "request id", _MAX_NAME_BYTES))
        case ["summary", reserved, computed]:
            names = each(computed, "computed", lambda n: text(n, "request id", _MAX_NAME_BYTES))
            return Summary(each(reserved, "reserved", _read_reserved), frozenset(names))
    raise MalformedMessage("change", "reserved, computed, freed or summary, with their fields")


def _packed(reserved: Reserved) -> list[object]:
    stays = [
        [
            target,
            stay.prompt_tokens,
            stay.uncached_tokens,
            stay.prefill_ms,
            stay.chain,
            stay.computes,
        ]
        for target, stay in reserved.stays
    ]
    return [reserved.request_id, stays]


def _read_reserved(value: object) -> Reserved:
    match value:
        case [request_id, stays]:
            name = text(request_id, "request id", _MAX_NAME_BYTES)
            return Reserved(name, each(stays, "stays", _read_stay))
    raise MalformedMessage("reserved", "[request id, stays]")


def _read_stay(value: object) -> tuple[str, Stay]:
    match value:
        case [target, prompt, uncached, milliseconds, chain, computes]:
            stay = Stay(
                whole(prompt, "prompt tokens", _END),
                whole(uncached, "uncached tokens", _END),
                max(0.0, number(milliseconds, "prefill ms")),
                _chain(chain),
                exact(computes, "computes", bool),
            )
            return text(target, "target", _MAX_NAME_BYTES), stay
    raise MalformedMessage("stay", "[target, prompt, uncached, ms, chain, computes]")


def _chain(value: object) -> bytes:
    chain = b"" if value == b"" else octets(value, "chain", _MAX_CHAIN_BYTES)
    if len(chain) % HASH_BYTES:
        raise MalformedMessage("chain", f"a multiple of {HASH_BYTES} bytes")
    return chain
