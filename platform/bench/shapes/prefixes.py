"""Prompts that begin alike for a share of their length: what caching and KV-aware routing save."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

from stafette.platform.bench.load import Conversation, Lengths, Level, Turn
from stafette.platform.bench.shapes.concurrency import requests_at
from stafette.platform.bench.shapes.drawing import OWN, check_above_zero, draw_tokens
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.prompts import Piece

DEFAULT_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixShape:
    ratios: tuple[float, ...] = DEFAULT_RATIOS
    prefixes: int = 20  # different beginnings
    concurrency: int = 20

    axis: ClassVar[str] = "shared share of a prompt"

    def __post_init__(self) -> None:
        if not self.ratios or len(set(self.ratios)) != len(self.ratios):
            remedy = "name at least one, and each once"
            raise InvalidSetting("--prefix-ratios", self.ratios, remedy)
        for ratio in self.ratios:
            if not 0 <= ratio < 1:
                remedy = "must be in 0..1, without 1: something of a prompt is its own"
                raise InvalidSetting("--prefix-ratios", ratio, remedy)
        check_above_zero("--prefixes", self.prefixes)
        check_above_zero("--concurrency", self.concurrency)

    def levels(self, lengths: Lengths, requests: int | None, seed: int) -> Sequence[Level]:
        count = requests_at(self.concurrency, requests)
        return [
            Level(
                name=f"p{ratio:g}".replace(".", "_"),
                load=ratio,
                limit=self.concurrency,
                num_requests=count,
                conversations=partial(self._requests, ratio, lengths, count, f"{seed} p{ratio:g}"),
            )
            for ratio in self.ratios
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "prefixes"} | asdict(self)

    def _requests(
        self, ratio: float, lengths: Lengths, count: int, seed: str
    ) -> Iterator[Conversation]:
        rng = random.Random(seed)
        shared = round(ratio * lengths.isl)
        for number in range(count):
            tokens = max(shared + 1, draw_tokens(lengths, rng))
            beginning = [Piece(rng.randrange(self.prefixes), shared)] if shared else []
            pieces = [*beginning, Piece(OWN + number, tokens - shared)]
            turn = Turn(pieces=pieces, output_tokens=lengths.osl)
            yield Conversation(name=f"q{number}", turns=(turn,))
