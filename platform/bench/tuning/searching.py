"""The tuning loop as a decision: which flags to try next, and what to keep.

One knob after the other, from where it stands to either side, until a step does not help. Who
starts servers and measures them is asked from here, and nothing here knows how.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stafette.platform.bench.tuning.knobs import Flags, Knob


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """`score`: more is better; None: the server did not start, or did not answer."""

    label: str
    flags: Flags
    score: float | None
    shown: str = ""  # what was measured, in words
    why: str = ""  # it failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    knob: str
    value: Any
    trial: Trial
    kept: bool
    reason: str


@dataclass(slots=True)
class Outcome:
    base: Trial
    best: Trial
    noise: float  # of two equal servers, a share
    steps: list[Step] = field(default_factory=list)
    skipped: dict[str, list[Any]] = field(default_factory=dict)  # behind a step that did not help

    def reasons(self) -> list[str]:
        """Return why each flag is as it is recommended."""
        found = []
        for knob in dict.fromkeys(step.knob for step in self.steps):
            own = [step for step in self.steps if step.knob == knob]
            tried = "; ".join(f"{step.value}: {step.reason}" for step in own)
            if left := self.skipped.get(knob):
                tried += f"; not tried behind that: {', '.join(map(str, left))}"
            value = self.best.flags.get(knob, "as it is")
            found.append(f"{knob} {value} ({tried})")
        return found


Run = Callable[[Flags, int], Awaitable[Trial]]  # the flags, and how often they were run before


@dataclass(slots=True)
class Search:
    """`start` has the values that the server takes where no flag is given."""

    run: Run
    knobs: Sequence[Knob]
    start: Flags
    margin: float = 0.03  # a smaller gain is none
    passes: int = 2

    async def find(self) -> Outcome:
        base = await self.run({}, 0)
        again = await self.run({}, 1)
        if base.score is None or again.score is None:
            return Outcome(base, base, 0.0)
        noise = abs(again.score / base.score - 1)
        better = max(base, again, key=lambda trial: trial.score or 0.0)
        outcome = Outcome(base, better, noise)
        for _ in range(self.passes):
            before = outcome.best
            for knob in self.knobs:
                await self._turn(knob, outcome)
            if outcome.best is before:
                break
        return outcome

    async def _turn(self, knob: Knob, outcome: Outcome) -> None:
        now = outcome.best.flags.get(knob.name, self.start.get(knob.name))
        if not knob.ordered:
            for value in knob.values:
                if value != now:
                    await self._try(knob, value, outcome)
            return
        above = [value for value in knob.values if now is None or value > now]
        below = [value for value in reversed(knob.values) if now is not None and value < now]
        outcome.skipped[knob.name] = []
        for side in (above, below):
            tried = 0
            for value in side:
                tried += 1
                if not await self._try(knob, value, outcome):
                    break
            seen = {step.value for step in outcome.steps if step.knob == knob.name}
            outcome.skipped[knob.name] += [each for each in side[tried:] if each not in seen]
            if outcome.best.flags.get(knob.name) in side:  # the other side is behind it
                return

    async def _try(self, knob: Knob, value: Any, outcome: Outcome) -> bool:
        seen = [step.value for step in outcome.steps if step.knob == knob.name]
        if value in seen or value == self.start.get(knob.name):
            return False
        best = outcome.best
        trial = await self.run({**best.flags, knob.name: value}, 0)
        needed = max(self.margin, outcome.noise)
        assert best.score is not None, "the first was measured"
        gain = None if trial.score is None else trial.score / best.score - 1
        kept = gain is not None and gain > needed
        if gain is None:
            reason = f"fails, {trial.why}"
        else:
            reason = f"{trial.shown}, {gain:+.1%}" + ("" if kept or gain < 0 else ", no clear gain")
        outcome.steps.append(
            Step(knob=knob.name, value=value, trial=trial, kept=kept, reason=reason)
        )
        if kept:
            outcome.best = trial
        return kept
