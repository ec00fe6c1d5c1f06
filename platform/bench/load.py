"""What every load shape says: levels, each of conversations that come when they are due."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.prompts import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request: what its user adds to what was said, and how long the answer shall be."""

    pieces: Sequence[Piece]
    output_tokens: int
    pause_s: float = 0.0  # after the answer before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns one behind the other; a plain request is one of a single turn."""

    name: str
    turns: Sequence[Turn]
    due_s: float = 0.0  # since the level began; of no meaning where `limit` is set


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """`limit`: so many conversations at once, the next when one ends; None: each when it is due."""

    name: str  # and that of its folder
    load: float  # what the level is a level of: requests at once, a rate, a share
    limit: int | None
    num_requests: int
    conversations: Callable[[], Iterator[Conversation]]
    aiperf: Sequence[str] | None = None  # how aiperf is told of the same load; None: it cannot


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """In tokens: of prompts, how they vary, and of answers."""

    isl: int = 2000
    std: int = 10
    osl: int = 256

    def __post_init__(self) -> None:
        for name in ("isl", "osl"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"--{name}", getattr(self, name), "must be at least 1")
        if self.std < 0:
            raise InvalidSetting("--std", self.std, "must be at least 0")
        if self.std >= self.isl:
            raise InvalidSetting("--std", self.std, f"must be below --isl = {self.isl}")


class Shape(Protocol):
    """One of `stafette.platform.bench.shapes`."""

    axis: ClassVar[str]  # what `Level.load` is

    def levels(self, lengths: Lengths, requests: int | None, seed: int) -> Sequence[Level]: ...

    def to_dict(self) -> dict[str, Any]: ...
