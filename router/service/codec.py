"""Bodies are JSON or msgpack: what comes says which by Content-Type, what goes by Accept."""

import json

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import pack, unpack
from stafette.router.service.errors import UnsupportedType

JSON, MSGPACK = "application/json", "application/msgpack"
MSGPACKS = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")


def is_msgpack(content_type: str) -> bool:
    """Tell which of the two it is; UnsupportedType for neither. Nothing is JSON."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in MSGPACKS:
        return True
    if kind in ("", JSON):
        return False
    raise UnsupportedType("content-type", content_type, f"must be {JSON} or {MSGPACK}")


def wants_msgpack(accept: str, came_as_msgpack: bool) -> bool:
    """Answer as asked; who does not care gets what it sent."""
    if any(kind in accept for kind in MSGPACKS):
        return True
    return came_as_msgpack and JSON not in accept


def decode(body: bytes, as_msgpack: bool) -> object:
    if not body:
        return {}
    if as_msgpack:
        return unpack(body, len(body))
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("body", f"JSON ({error})") from None


def encode(value: object, as_msgpack: bool) -> tuple[bytes, str]:
    """Return the body and its type."""
    if as_msgpack:
        return pack(value), MSGPACK
    return json.dumps(value, ensure_ascii=False).encode(), JSON
