"""Runs the systems side by side: paused children, woken for their turn in every round."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.child import Child, ChildFailed
from benchmarks.common.rounds import middle, turns
from benchmarks.kvtransfer.peers.lineup import Entry
from benchmarks.kvtransfer.peers.protocol import Run

START = Run(num_blocks=1, block_bytes=4096, seed=0, seconds=0.0)

_PATIENCE_S = 180.0
_SRC = Path(__file__).resolve().parents[3] / "src"


@dataclass(slots=True)
class Standing:
    """What one system showed, case by case; each run is an Answer."""

    runs: dict[Run, list[dict[str, Any]]] = field(default_factory=dict)
    lost: str = ""  # why it did not take part, or fell out

    def p50_s(self, case: Run) -> float | None:
        return self._middle(case, "p50_s")

    def cpu_s_per_gb(self, case: Run) -> float | None:
        return self._middle(case, "cpu_s_per_gb")

    def gb_per_s(self, case: Run) -> float | None:
        p50_s = self.p50_s(case)
        return case.nbytes / p50_s / 1e9 if p50_s else None

    def notes(self) -> set[str]:
        return {run["note"] for runs in self.runs.values() for run in runs if run["note"]}

    def _middle(self, case: Run, what: str) -> float | None:
        return middle([run[what] for run in self.runs.get(case, [])])


class Contest:
    """Owns the children. A system that fails is out, with the reason; the others go on."""

    def __init__(self, entries: Sequence[Entry], logs: Path) -> None:
        self._entries = entries
        self._logs = logs
        self.standings = {entry.name: Standing(lost=entry.missing) for entry in entries}
        self._children: dict[str, Child] = {}

    def start(self) -> None:
        for entry in self._entries:
            if not entry.missing:
                log = self._logs / f"{entry.name.replace(' ', '-')}.log"
                env = {"PYTHONPATH": str(_SRC), **entry.env}
                self._children[entry.name] = Child(entry.name, entry.command, log, env)
                self._ask(entry.name, START, "starting")

    def play(self, cases: Mapping[str, Run], rounds: int) -> None:
        """Measure every case, systems taking turns, all with the same lists in a round."""
        for label, case in cases.items():
            for number, name in turns(list(self._children), rounds):
                run = Run(case.num_blocks, case.block_bytes, number, case.seconds)
                answer = self._ask(name, run, f"{label}, round {number + 1}")
                if answer is not None:
                    self.standings[name].runs.setdefault(case, []).append(answer)

    def close(self) -> None:
        for name in list(self._children):
            self._children.pop(name).close()

    def _ask(self, name: str, run: Run, doing: str) -> dict[str, Any] | None:
        child = self._children.get(name)
        if child is None:
            return None
        try:
            answer = child.ask(asdict(run), _PATIENCE_S, doing)
        except ChildFailed as failure:
            self.standings[name].lost = str(failure)
            self._children.pop(name).close()
            return None
        child.pause()
        return answer
