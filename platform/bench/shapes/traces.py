"""The requests of a trace, at its times: Mooncake's form or that of Azure's public data set."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from stafette.platform.bench.load import Conversation, Lengths, Level, Turn
from stafette.platform.bench.shapes.drawing import OWN, check_above_zero
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.prompts import Piece
from stafette.platform.twin.workloads.mooncake import read_mooncake

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_SECONDS = len("2023-11-16 18:15:46")
Entry = tuple[float, Sequence[Piece], int]  # when in seconds, the prompt, the answer's tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceShape:
    file: str
    speedups: tuple[float, ...] = (1.0,)
    block_tokens: int = 512  # that each of Mooncake's hash_ids stands for
    max_isl: int | None = None  # longer requests are left out
    max_osl: int | None = None  # longer answers are cut

    axis: ClassVar[str] = "times as fast as the trace"

    def __post_init__(self) -> None:
        for speedup in self.speedups:
            check_above_zero("--speedup", speedup)
        for name in ("max_isl", "max_osl"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = f"--{name.replace('_', '-')}"
                raise InvalidSetting(option, value, "must be at least 1, or left out")

    def levels(self, lengths: Lengths, requests: int | None, seed: int) -> Sequence[Level]:
        """Return a level for each speed; the lengths are the trace's own."""
        entries = self._entries(requests)
        return [
            Level(
                name=f"x{speedup:g}".replace(".", "_"),
                load=speedup,
                limit=None,
                num_requests=len(entries),
                conversations=partial(_coming, entries, speedup),
            )
            for speedup in self.speedups
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "trace"} | asdict(self)

    def _entries(self, most: int | None) -> list[Entry]:
        path = Path(self.file)
        read: Callable[[], Iterator[Entry]] = (
            partial(_azure, path)
            if path.suffix == ".csv"
            else partial(_mooncake, path, self.block_tokens)
        )
        found: list[Entry] = []
        for at_s, pieces, output in read():
            if self.max_isl and sum(piece.tokens for piece in pieces) > self.max_isl:
                continue
            found.append((at_s, pieces, min(output, self.max_osl or output)))
            if len(found) == most:
                break
        if not found:
            raise InvalidSetting("--trace", self.file, "holds no request that is short enough")
        return found


def _coming(entries: Sequence[Entry], speedup: float) -> Iterator[Conversation]:
    first = entries[0][0]
    for number, (at_s, pieces, output) in enumerate(entries):
        turn = Turn(pieces=pieces, output_tokens=output)
        due_s = (at_s - first) / speedup
        yield Conversation(name=f"q{number}", turns=(turn,), due_s=due_s)


def _mooncake(path: Path, block_tokens: int) -> Iterator[Entry]:
    for entry in read_mooncake(path, block_tokens):
        yield entry.at_s, entry.pieces(block_tokens), entry.output_tokens


def _azure(path: Path) -> Iterator[Entry]:
    """Yield requests of which only lengths are known: they share nothing."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines)
            if missing := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
                raise InvalidSetting("--trace", str(path), f"lacks the column {missing[0]}")
            for number, row in enumerate(rows):
                yield _azure_entry(path, number, row)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting("--trace", str(path), f"cannot be read: {error}") from None


def _azure_entry(path: Path, number: int, row: dict[str, str]) -> Entry:
    try:
        told = row[_COLUMNS[0]]
        at_s = datetime.fromisoformat(told[:_SECONDS]).timestamp()
        at_s += float("0" + (told[_SECONDS:] or ".0"))  # tenths of microseconds
        prompt, output = max(1, int(row[_COLUMNS[1]])), max(1, int(row[_COLUMNS[2]]))
    except (TypeError, ValueError) as error:
        where = f"{path.name}:{number + 2}"
        raise InvalidSetting("--trace", where, f"is not a request of a trace: {error}") from None
    return at_s, [Piece(OWN + number, prompt)], output
