"""One trial: a server with some flags, measured as `stafette bench run` does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stafette.platform.bench.endpoints import Endpoint
from stafette.platform.bench.errors import BenchError, NotWritten, PlanChanged
from stafette.platform.bench.measured import Measured, read_measured
from stafette.platform.bench.results import not_written
from stafette.platform.bench.summary import Summary
from stafette.platform.bench.sweep import Sweep
from stafette.platform.bench.tuning.knobs import Flags, label_of
from stafette.platform.bench.tuning.objectives import Objective
from stafette.platform.bench.tuning.searching import Trial
from stafette.platform.bench.tuning.servers import Servers
from stafette.platform.frontend.errors import InvalidSetting
from stafette.workers.errors import ConfigError

_FLAGS, _FAILED = "flags.json", "failed.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Measured once each: what the folder holds is read from there."""

    sweep: Sweep  # its plan has no endpoints: each trial is one
    servers: Servers
    objective: Objective
    command: str

    async def run(self, flags: Flags, times: int = 0, label: str | None = None) -> Trial:
        self.sweep.results.check(self.sweep.plan)
        label = (label or label_of(flags)) + (f"--again{times}" if times else "")
        folder = self.sweep.results.folder / label
        failed = folder / _FAILED
        if not failed.exists() and not self._measured(label):
            await self._measure(flags, label)
        if failed.exists():
            why = str(json.loads(failed.read_text(encoding="utf-8"))["why"])
            return Trial(label=label, flags=flags, score=None, why=why)
        summary = self.summary(label)
        score, shown = self.objective.score(summary), self.objective.shown(summary)
        return Trial(label=label, flags=flags, score=score, shown=shown)

    def measured(self, label: str) -> list[Measured]:
        return read_measured(self.sweep.results.folder / label)

    def summary(self, label: str) -> Summary:
        """Return the only level's."""
        return self.measured(label)[0].summary

    async def _measure(self, flags: Flags, label: str) -> None:
        folder = self.sweep.results.folder / label
        self.sweep.tell(f"trying {label}")
        try:
            async with self.servers.running(flags, folder / "server.log") as url:
                plan = replace(self.sweep.plan, endpoints=(Endpoint(label, url),))
                _forget_url(folder)
                await replace(self.sweep, plan=plan).run(self.command)
            _write(folder / _FLAGS, flags)
        except (InvalidSetting, NotWritten, PlanChanged):
            raise
        except (BenchError, ConfigError) as error:
            self.sweep.tell(f"{label} fails: {error.remedy}")
            _write(folder / _FAILED, {"why": error.remedy})

    def _measured(self, label: str) -> bool:
        levels = self.sweep.plan.levels()
        return all(self.sweep.results.finished(label, level) for level in levels)


def _forget_url(folder: Path) -> None:
    """A trial that goes on has a server of its own again."""
    (folder / "endpoint.json").unlink(missing_ok=True)


def _write(path: Path, told: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(told), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from None
