"""Reads what was measured back from the folders of results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stafette.platform.bench.endpoints import PLOTS
from stafette.platform.bench.record import Record
from stafette.platform.bench.results import read_records
from stafette.platform.bench.summary import Summary
from stafette.platform.frontend.errors import InvalidSetting

_SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One finished level of one endpoint."""

    label: str
    level: str
    load: float
    axis: str
    backend: str
    gpus: int
    summary: Summary
    folder: Path

    def records(self) -> list[Record]:
        return read_records(self.folder / "records.jsonl")


@dataclass(frozen=True, slots=True)
class Broken:
    """A level that was not finished, and why."""

    label: str
    level: str
    why: str


def read_measured(folder: Path) -> list[Measured]:
    """Return the finished levels below a folder: of a benchmark, or of one label of it."""
    found = [_read_level(path) for path in _below(folder, _SUMMARY)]
    if not found:
        remedy = "holds no finished level: name a folder that `stafette bench run` wrote"
        raise InvalidSetting("results", str(folder), remedy)
    return sorted(found, key=lambda each: (each.label, each.load))


def read_broken(folder: Path) -> list[Broken]:
    return [
        Broken(path.parent.parent.name, path.parent.name, str(_read(path).get("why")))
        for path in _below(folder, "broken.json")
    ]


def by_label(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for each in measured:
        found.setdefault(each.label, []).append(each)
    return found


def _below(folder: Path, name: str) -> list[Path]:
    found = [*folder.glob(name), *folder.glob(f"*/{name}"), *folder.glob(f"*/*/{name}")]
    return sorted(path for path in found if PLOTS not in path.relative_to(folder).parts)


def _read_level(path: Path) -> Measured:
    told = _read(path)
    known = {each.name for each in fields(Summary)}
    try:
        summary = Summary(**{k: v for k, v in told.pop("summary").items() if k in known})
        return Measured(**told, summary=summary, folder=path.parent)
    except (AttributeError, KeyError, TypeError) as error:
        remedy = f"is not a summary of `stafette bench run`: {error}"
        raise InvalidSetting("results", str(path), remedy) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        told: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return dict(told)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidSetting("results", str(path), f"cannot be read: {error}") from None
