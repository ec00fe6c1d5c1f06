"""Requests of a trace in Mooncake's form: a JSON object a line, with block ids for tokens."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.prompts import Piece, Prompt, prompt_of
from stafette.platform.twin.workloads.config import TraceConfig

_FIELDS = ("timestamp", "input_length", "output_length")


class Trace:
    """Read once; kept as block ids."""

    def __init__(self, config: TraceConfig, path: Path) -> None:
        self._config = config
        self._path = path
        self._entries = [self._entry(line, text) for line, text in self._lines()]
        self._entries.sort(key=lambda entry: entry[0])
        if not self._entries:
            raise InvalidSetting("trace.file", str(path), "holds no request")

    @property
    def duration_s(self) -> float:
        return self._entries[-1][0]

    def arrivals(self) -> Iterator[Arrival]:
        for at_s, prompt_tokens, output_tokens, blocks in self._entries:
            prompt = partial(self._prompt, blocks, prompt_tokens)
            yield Arrival(at_s=at_s, make_prompt=prompt, output_tokens=output_tokens)

    def _prompt(self, blocks: tuple[int, ...], num_tokens: int) -> Prompt:
        size = self._config.block_tokens
        pieces = [Piece(block, size) for block in blocks[: num_tokens // size]]
        if rest := num_tokens - size * len(pieces):
            pieces.append(Piece(blocks[len(pieces)], rest))
        return prompt_of(pieces)

    def _lines(self) -> Iterator[tuple[int, str]]:
        try:
            with self._path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if number - 1 == self._config.limit:
                        return
                    if line.strip():
                        yield number, line
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSetting(
                "trace.file", str(self._path), f"cannot be read: {error}"
            ) from None

    def _entry(self, number: int, line: str) -> tuple[float, int, int, tuple[int, ...]]:
        try:
            told = json.loads(line)
            at_ms, prompt, output = (self._number(told, name) for name in _FIELDS)
            blocks = tuple(int(block) for block in told["hash_ids"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._wrong(number, f"is not a request of a trace: {error!r}") from None
        prompt, output = max(1, int(prompt)), max(1, int(output))
        if -(-prompt // self._config.block_tokens) > len(blocks):
            remedy = f"has {len(blocks)} hash_ids, too few for its {prompt} tokens"
            raise self._wrong(number, f"{remedy}: see trace.block_tokens")
        if min(blocks) < 0:
            raise self._wrong(number, "has a hash_id below 0")
        return at_ms / 1e3 / self._config.speedup, prompt, output, blocks

    def _number(self, told: dict[str, Any], name: str) -> float:
        value = told[name]
        if not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"{name} is {value!r}")
        return value

    def _wrong(self, number: int, remedy: str) -> InvalidSetting:
        return InvalidSetting("trace.file", f"{self._path.name}:{number}", remedy)
