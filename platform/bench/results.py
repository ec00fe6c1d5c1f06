"""The folder of one benchmark's results, written so that a run can go on where another stopped.

NAME/plan.json                 what is measured; another plan is refused
NAME/runs.jsonl                each command that wrote here, with versions and what servers told
NAME/LABEL/endpoint.json       where
NAME/LABEL/LEVEL/records.jsonl a line for each request
NAME/LABEL/LEVEL/summary.json  written last: a level that has it is finished
NAME/LABEL/LEVEL/broken.json   why it is not
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stafette.platform.bench.endpoints import Endpoint
from stafette.platform.bench.errors import NotWritten, PlanChanged
from stafette.platform.bench.load import Level
from stafette.platform.bench.plan import Plan, differences
from stafette.platform.bench.record import Record
from stafette.platform.frontend.errors import InvalidSetting

_PLAN = "plan.json"
_SHOWN = 3  # differences


@dataclass(frozen=True, slots=True)
class Results:
    folder: Path

    def check(self, plan: Plan) -> None:
        """Raise PlanChanged when the folder holds another plan."""
        earlier = stored_plan(self.folder)
        if not earlier:
            return
        found = differences(plan.to_dict(), earlier)
        found += [said for end in plan.endpoints if (said := self._moved(end))]
        if found:
            shown = "; ".join(found[:_SHOWN]) + ("; …" if len(found) > _SHOWN else "")
            remedy = f"holds results of another plan ({shown}): take another --name"
            raise PlanChanged("--name", str(self.folder), remedy)

    def begin(self, plan: Plan, told: Mapping[str, Any]) -> None:
        """Write what is going to be measured, and with what."""
        self._write(self.folder / _PLAN, plan.to_dict())
        for endpoint in plan.endpoints:
            where = {"label": endpoint.label, "url": endpoint.url}
            self._write(self.folder / endpoint.label / "endpoint.json", where)
        with self._writing(self.folder / "runs.jsonl", "a") as file:
            file.write(json.dumps(told) + "\n")

    def level(self, label: str, name: str) -> Path:
        return self.folder / label / name

    def finished(self, label: str, level: Level) -> bool:
        return (self.level(label, level.name) / "summary.json").exists()

    @contextmanager
    def records(self, label: str, level: Level) -> Iterator["RecordFile"]:
        """Keep records as they come: those of a level that breaks off stay."""
        path = self.level(label, level.name) / "records.jsonl"
        with self._writing(path, "w") as file:
            yield RecordFile(path, file)

    def finish(self, label: str, level: Level, told: Mapping[str, Any]) -> None:
        folder = self.level(label, level.name)
        self._write(folder / "summary.json", told)
        (folder / "broken.json").unlink(missing_ok=True)

    def broke(self, label: str, level: Level, told: Mapping[str, Any]) -> None:
        """Say why a level has no summary; where even that cannot be written, its lack says it."""
        with suppress(NotWritten):
            self._write(self.level(label, level.name) / "broken.json", told)

    def _moved(self, endpoint: Endpoint) -> str:
        path = self.folder / endpoint.label / "endpoint.json"
        url = _read(path)["url"] if path.exists() else endpoint.url
        if url == endpoint.url:
            return ""
        return f"--endpoint {endpoint.label} was {url}, and is {endpoint.url}"

    def _write(self, path: Path, told: Mapping[str, Any]) -> None:
        """Write a file whole, or not at all."""
        aside = path.with_suffix(".new")
        with self._writing(aside, "w") as file:
            json.dump(told, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    @contextmanager
    def _writing(self, path: Path, mode: str) -> Iterator[IO[str]]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(mode, encoding="utf-8") as file:
                yield file
        except OSError as error:
            raise not_written(path, error) from None


@dataclass(frozen=True, slots=True)
class RecordFile:
    path: Path
    file: IO[str]

    def add(self, record: Record) -> None:
        """Write a line at once: what is written is not lost with this process."""
        try:
            self.file.write(json.dumps(record.to_dict()) + "\n")
            self.file.flush()
        except OSError as error:
            raise not_written(self.path, error) from None


def stored_plan(folder: Path) -> dict[str, Any]:
    """Return the plan that a folder of results holds; {} where there is none."""
    path = folder / _PLAN
    return _read(path) if path.exists() else {}


def not_written(path: Path, error: OSError) -> NotWritten:
    remedy = f"cannot be written ({error.strerror or error}): what is finished stays; make room, "
    return NotWritten("--output-dir", str(path), remedy + "and run the same command again")


def read_records(path: Path) -> list[Record]:
    """Return a level's records; a line that was cut short is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidSetting("results", str(path), f"cannot be read: {error}") from None
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(Record.of(json.loads(line)))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = f"is not to be read ({error}): take another --name, or remove it"
        raise InvalidSetting("results", str(path), remedy) from None
    if not isinstance(told, dict):
        raise InvalidSetting("results", str(path), "must hold a mapping")
    return told
