"""Runs several engines side by side: each a paused child, woken for its turn in every round."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.child import Child, ChildFailed
from benchmarks.common.rounds import middle, turns
from benchmarks.engine.contenders.protocol import Case

FIRST_TOKEN = Case(sequences=1, prompt_tokens=16, output_tokens=1)
WARM_UP = Case(sequences=4, prompt_tokens=128, output_tokens=8)

_SLOWEST_TOKENS_PER_S = 5.0  # below it an engine counts as stuck
_OVERHEAD_S = 120.0
_SRC = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine: how its contender is run, and how long its start may take."""

    name: str
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 120.0
    starts_slowly: bool = False  # in minutes: measured once
    holds_model: bool = True  # False: a process of its own for each run, whose memory is not known


@dataclass(slots=True)
class Standing:
    """What one engine showed."""

    starts_s: list[float] = field(default_factory=list)
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    memory_bytes: int | None = None
    lost: str | None = None  # why it fell out

    @property
    def start_s(self) -> float | None:
        return middle(self.starts_s)

    def seconds(self, case: str) -> float | None:
        return middle([run["seconds"] for run in self.runs.get(case, [])])

    def ttft_s(self, case: str) -> float | None:
        return middle([run["ttft_s"] for run in self.runs.get(case, []) if run.get("ttft_s")])


class Contest:
    """Owns the children. An engine that fails is out; the others go on."""

    def __init__(self, entries: Sequence[Entry], logs: Path) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.standings = {entry.name: Standing() for entry in entries}
        self._logs = logs
        self._children: dict[str, Child] = {}

    @property
    def running(self) -> list[str]:
        return list(self._children)

    def start(self, rounds: int) -> None:
        """Measure start to first token; slow starters once, the others in fresh processes."""
        for number, name in turns(list(self.entries), rounds):
            entry = self.entries[name]
            if self.standings[name].lost or (number and entry.starts_slowly):
                continue
            self._close(name)
            self._launch(entry)
        for name in [name for name in self.running if self.entries[name].holds_model]:
            self._ask(name, WARM_UP, "warming up")

    def play(self, cases: Mapping[str, Case], rounds: int) -> None:
        """Run every case on every engine, engines taking turns, all with the same prompts."""
        for case_name, case in cases.items():
            for number, name in turns(self.running, rounds):
                self.run(name, case_name, case, number)
        for name, child in self._children.items():
            if self.entries[name].holds_model:
                self.standings[name].memory_bytes = child.memory_bytes()

    def run(self, name: str, case_name: str, case: Case, seed: int) -> None:
        """Add one run to the engine's standing, unless it is out."""
        seeded = Case(case.sequences, case.prompt_tokens, case.output_tokens, seed)
        answer = self._ask(name, seeded, f"{case_name}, round {seed + 1}")
        if answer is not None:
            self.standings[name].runs.setdefault(case_name, []).append(answer)

    def close(self) -> None:
        for name in self.running:
            self._close(name)

    def _launch(self, entry: Entry) -> None:
        log = self._logs / f"{entry.name.replace(' ', '-')}.log"
        env = {"PYTHONPATH": str(_SRC), **entry.env}
        started = time.perf_counter()
        self._children[entry.name] = Child(entry.name, entry.command, log, env)
        answer = self._ask(entry.name, FIRST_TOKEN, "starting", entry.start_timeout_s)
        if answer is not None:
            wall = time.perf_counter() - started
            # A contender that runs a process for each case measures that process, not itself.
            self.standings[entry.name].starts_s.append(answer.get("start_s") or wall)

    def _ask(
        self, name: str, case: Case, doing: str, timeout_s: float | None = None
    ) -> dict[str, Any] | None:
        child = self._children.get(name)
        if child is None:
            return None
        patience = timeout_s or _OVERHEAD_S + case.total_tokens / _SLOWEST_TOKENS_PER_S
        try:
            answer = child.ask(asdict(case), patience, doing)
        except ChildFailed as failure:
            self.standings[name].lost = str(failure)
            self._close(name)
            return None
        child.pause()
        return answer

    def _close(self, name: str) -> None:
        child = self._children.pop(name, None)
        if child is not None:
            child.close()
