"""A benchmark's result: figures, tables and goals, printed as text and written as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.common.tables import cell, render


@dataclass(frozen=True, slots=True)
class Goal:
    """A number to reach. `value` is None when it could not be measured here."""

    name: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """None: not measured, hence neither met nor missed."""
        if self.value is None:
            return None
        low = self.at_least is None or self.value >= self.at_least
        high = self.at_most is None or self.value <= self.at_most
        return low and high  # a NaN fails both comparisons

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]

    def as_row(self) -> list[object]:
        bound = self.at_least if self.at_least is not None else self.at_most
        sign = "≥" if self.at_least is not None else "≤"
        return [self.name, f"{sign} {cell(bound)}", self.value, self.verdict]


@dataclass(slots=True)
class _Table:
    name: str
    headers: list[str]
    rows: list[list[object]]

    def text(self) -> str:
        return f"{self.name}\n{render(self.headers, self.rows)}"

    def records(self) -> list[dict[str, object]]:
        return [dict(zip(self.headers, row, strict=True)) for row in self.rows]


@dataclass(slots=True)
class Report:
    """Collects what a benchmark found; `finish` tells it and returns the exit status."""

    title: str
    figures: dict[str, object] = field(default_factory=dict)
    tables: list[_Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(self, name: str, value: object) -> None:
        self.figures[name] = value

    def table(self, name: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.tables.append(_Table(name, list(headers), [list(row) for row in rows]))

    def goal(self, goal: Goal) -> None:
        self.goals.append(goal)

    def note(self, text: str) -> None:
        """Say what was skipped, or what the reader must know of the numbers."""
        self.notes.append(text)

    @property
    def missed(self) -> list[Goal]:
        return [goal for goal in self.goals if goal.met is False]

    def text(self) -> str:
        parts = [self.title, machine.line(), *(table.text() for table in self.tables)]
        if self.figures:
            parts.append(render(["figure", "value"], [list(item) for item in self.figures.items()]))
        if self.goals:
            rows = [goal.as_row() for goal in self.goals]
            parts.append(render(["goal", "wanted", "measured", ""], rows))
        parts += [f"note: {note}" for note in self.notes]
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "machine": machine.describe(),
            "tables": {table.name: table.records() for table in self.tables},
            "figures": self.figures,
            "goals": [
                {"name": g.name, "value": g.value, "at_least": g.at_least, "at_most": g.at_most}
                | {"met": g.met}
                for g in self.goals
            ],
            "notes": self.notes,
        }

    def finish(self, json_file: str | None = None) -> int:
        """Print everything, write the JSON when asked; 1 when a goal was missed, else 0."""
        print(self.text())
        if json_file:
            Path(json_file).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return 1 if self.missed else 0
