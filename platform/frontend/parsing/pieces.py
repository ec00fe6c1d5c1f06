"""What an answer is made of, in the order in which the model says it."""

import secrets
from dataclasses import dataclass


@dataclass(slots=True)
class Text:
    """What the user is to read."""

    text: str


@dataclass(slots=True)
class Reasoning:
    """What the model thinks before it answers."""

    text: str


@dataclass(slots=True)
class CallBegin:
    """A tool is being called; its arguments follow, as JSON, in one piece or several."""

    index: int
    call_id: str
    name: str


@dataclass(slots=True)
class CallArguments:
    index: int
    text: str


Piece = Text | Reasoning | CallBegin | CallArguments


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
