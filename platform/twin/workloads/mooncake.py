"""Requests of a trace in Mooncake's form: a JSON object a line, with block ids for tokens."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.prompts import Piece, Prompt, prompt_of
from stafette.platform.twin.workloads.config import TraceConfig

_FIELDS = ("timestamp", "input_length", "output_length")


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of the file."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]

    def pieces(self, block_tokens: int) -> list[Piece]:
        whole = self.blocks[: self.prompt_tokens // block_tokens]
        pieces = [Piece(block, block_tokens) for block in whole]
        if rest := self.prompt_tokens - block_tokens * len(pieces):
            pieces.append(Piece(self.blocks[len(pieces)], rest))
        return pieces


def read_mooncake(path: Path, block_tokens: int, limit: int | None = None) -> Iterator[Entry]:
    """Yield the requests in the order of the file, the first `limit` lines of it."""
    for number, line in _lines(path, limit):
        yield _entry(path, number, line, block_tokens)


class Trace:
    """Read once; kept as block ids."""

    def __init__(self, config: TraceConfig, path: Path) -> None:
        self._config = config
        entries = read_mooncake(path, config.block_tokens, config.limit)
        self._entries = sorted(entries, key=lambda entry: entry.at_s)
        if not self._entries:
            raise InvalidSetting("trace.file", str(path), "holds no request")

    @property
    def duration_s(self) -> float:
        return self._entries[-1].at_s / self._config.speedup

    def arrivals(self) -> Iterator[Arrival]:
        for entry in self._entries:
            yield Arrival(
                at_s=entry.at_s / self._config.speedup,
                make_prompt=partial(self._prompt, entry),
                output_tokens=entry.output_tokens,
            )

    def _prompt(self, entry: Entry) -> Prompt:
        return prompt_of(entry.pieces(self._config.block_tokens))


def _lines(path: Path, limit: int | None) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if number - 1 == limit:
                    return
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting("trace.file", str(path), f"cannot be read: {error}") from None


def _entry(path: Path, number: int, line: str, block_tokens: int) -> Entry:
    try:
        told = json.loads(line)
        at_ms, prompt, output = (_number(told, name) for name in _FIELDS)
        blocks = tuple(int(block) for block in told["hash_ids"])
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(path, number, f"is not a request of a trace: {error!r}") from None
    prompt, output = max(1, int(prompt)), max(1, int(output))
    if -(-prompt // block_tokens) > len(blocks):
        remedy = f"has {len(blocks)} hash_ids, too few for its {prompt} tokens"
        raise _wrong(path, number, f"{remedy}: see trace.block_tokens")
    if min(blocks) < 0:
        raise _wrong(path, number, "has a hash_id below 0")
    return Entry(at_ms / 1e3, prompt, output, blocks)


def _number(told: dict[str, Any], name: str) -> float:
    value = told[name]
    if not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{name} is {value!r}")
    return value


def _wrong(path: Path, number: int, remedy: str) -> InvalidSetting:
    return InvalidSetting("trace.file", f"{path.name}:{number}", remedy)
