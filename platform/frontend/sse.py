"""Server-sent events, made of text that is ready and text that changes."""

import json
from json.encoder import encode_basestring

DONE = "data: [DONE]\n\n"

# Valid JSON, but clients that split events with str.splitlines() would see a line's end in them.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def quoted(text: str) -> str:
    """Return text as JSON has it."""
    shown: str = encode_basestring(text)
    return shown if shown.isascii() else shown.translate(_LINE_ENDS)


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)


def event(value: object, name: str | None = None) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {as_json(value)}\n\n"
