"""Who is measured: stafette's router here, Dynamo's in an environment of its own."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.child import Child, ChildFailed
from benchmarks.common.rounds import middle, turns
from benchmarks.engine.peers import PeerMissing, call

OURS, DYNAMO = "stafette", "Dynamo"
RUNTIME = "ai-dynamo-runtime==1.6.1"
_NEEDS = ["orjson", "pyzmq", "msgpack"]
_MARKER = "installed.txt"  # written last: an interrupted installation starts afresh
_INSTALL_S = 1200.0
_PATIENCE_S = 300.0
_SRC = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    python: Path
    module: str


class Field:
    """Asks every contender the same questions, each in a fresh process, in alternating rounds."""

    def __init__(self, folder: Path, install: bool) -> None:
        self.entries = [Entry(OURS, Path(sys.executable), "stafette")]
        self.missing = ""  # why Dynamo is not measured
        self._logs = folder / "logs"
        try:
            self.entries.append(Entry(DYNAMO, dynamo(folder, install), "dynamo"))
        except PeerMissing as error:
            self.missing = str(error)

    def ask(self, rounds: int, question: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Return each contender's medians by name."""
        found: dict[str, list[dict[str, float]]] = {entry.name: [] for entry in self.entries}
        by_name = {entry.name: entry for entry in self.entries}
        for _, name in turns(list(by_name), rounds):
            found[name].append(self._ask_one(by_name[name], question))
        return {name: _medians(answers) for name, answers in found.items()}

    def _ask_one(self, entry: Entry, question: Mapping[str, Any]) -> dict[str, float]:
        command = [str(entry.python), "-P", "-m", "benchmarks.router.contenders.child"]
        log = self._logs / f"router-{entry.name}.log"
        env = {"PYTHONPATH": str(_SRC), "DYN_LOG": "error"}
        child = Child(entry.name, [*command, entry.module], log, env)
        try:
            return child.ask(question, _PATIENCE_S, str(question["ask"]))
        except ChildFailed as error:
            print(f"not measured: {error}", file=sys.stderr)
            return {}
        finally:
            child.close()


def dynamo(folder: Path, install: bool) -> Path:
    """Return a Python that has Dynamo's runtime, installed without what only its CLI needs."""
    home = folder / "dynamo"
    marker, python = home / _MARKER, home / "bin" / "python"
    if marker.exists() and marker.read_text() == RUNTIME:
        return python
    if not install:
        raise PeerMissing(f"{RUNTIME} is not installed in {home} yet: --quick installs nothing")
    print(f"installing {RUNTIME} into {home}", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    call([sys.executable, "-m", "venv", str(home)], _INSTALL_S)
    pip = [str(python), "-m", "pip", "install", "-q"]
    call([*pip, "--no-deps", RUNTIME], _INSTALL_S)
    call([*pip, *_NEEDS], _INSTALL_S)
    marker.write_text(RUNTIME)
    return python


def _medians(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for answer in answers for name in answer}
    values = {
        name: middle([answer[name] for answer in answers if name in answer]) for name in names
    }
    return {name: value for name, value in values.items() if value is not None}
