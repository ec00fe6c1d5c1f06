"""How a workload is described: one kind of arrivals, and the lengths of what arrives."""

import math
from dataclasses import dataclass, fields

from stafette.platform.frontend.errors import InvalidSetting


def _check_at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:  # a NaN fails as well
        raise InvalidSetting(name, value, f"must be a number of at least {least:g}")


def _check_above_zero(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise InvalidSetting(name, value, "must be a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthsConfig:
    """Log-normal lengths around these means; spread 0: always the mean."""

    prompt_tokens: int = 2_000
    prompt_spread: float = 0.5  # the standard deviation of its logarithm
    output_tokens: int = 200
    output_spread: float = 0.5
    shared_tokens: int = 0  # of each prompt, its beginning, that others share
    beginnings: int = 8  # how many there are to share
    max_prompt_tokens: int = 32_000
    max_output_tokens: int = 4_000

    def __post_init__(self) -> None:
        _check_above_zero(self, "prompt_tokens", "output_tokens", "beginnings")
        _check_above_zero(self, "max_prompt_tokens", "max_output_tokens")
        for name in ("prompt_spread", "output_spread", "shared_tokens"):
            _check_at_least(name, getattr(self, name), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftConfig:
    """From one kind of requests to another: what comes meanwhile is of either kind."""

    at_s: float
    lengths: LengthsConfig
    over_s: float = 0.0  # 0: at once

    def __post_init__(self) -> None:
        _check_at_least("at_s", self.at_s, 0)
        _check_at_least("over_s", self.over_s, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceConfig:
    """A file in Mooncake's form: timestamp (ms), input_length, output_length, hash_ids."""

    file: str  # a relative one is looked for beside the description
    speedup: float = 1.0
    limit: int | None = None  # requests; None: all
    block_tokens: int = 512  # that each of hash_ids stands for

    def __post_init__(self) -> None:
        _check_above_zero(self, "speedup", "block_tokens")
        if self.limit is not None and self.limit < 1:
            raise InvalidSetting("limit", self.limit, "must be at least 1, or left out")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonConfig:
    requests_s: float = 1.0

    def __post_init__(self) -> None:
        _check_at_least("requests_s", self.requests_s, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstyConfig:
    """Quiet and busy stretches of random length take turns."""

    requests_s: float = 1.0  # while it is quiet
    factor: float = 5.0  # of it, in a burst
    burst_s: float = 10.0  # mean
    quiet_s: float = 60.0  # mean

    def __post_init__(self) -> None:
        _check_at_least("requests_s", self.requests_s, 0)
        _check_above_zero(self, "factor", "burst_s", "quiet_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiurnalConfig:
    """A sine over each period, lowest at its beginning; with bursts at random times."""

    requests_s: float = 1.0  # mean
    amplitude: float = 0.8  # of the mean
    period_s: float = 86_400.0
    bursts: float = 0.0  # in each period, mean
    burst_factor: float = 3.0
    burst_s: float = 60.0

    def __post_init__(self) -> None:
        _check_at_least("requests_s", self.requests_s, 0)
        _check_at_least("bursts", self.bursts, 0)
        _check_above_zero(self, "period_s", "burst_factor", "burst_s")
        if not 0 <= self.amplitude <= 1:
            raise InvalidSetting("amplitude", self.amplitude, "must be in 0..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """One rate, and from a moment on a multiple of it; 0 lets everything fall silent."""

    requests_s: float = 1.0
    factor: float = 5.0
    at_s: float = 60.0
    until_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests_s", "factor", "at_s"):
            _check_at_least(name, getattr(self, name), 0)
        if self.until_s is not None and not self.until_s > self.at_s:
            raise InvalidSetting("until_s", self.until_s, f"must be above at_s = {self.at_s:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsConfig:
    """Conversations: each turn repeats what was said before, and adds to it."""

    sessions_s: float = 1.0
    turns: float = 5.0  # mean
    think_s: float = 10.0  # mean, between an answer and the next turn
    turn_tokens: int = 100  # mean, that a turn adds; the first is as `lengths` says

    def __post_init__(self) -> None:
        _check_at_least("sessions_s", self.sessions_s, 0)
        _check_at_least("think_s", self.think_s, 0)
        _check_at_least("turns", self.turns, 1)
        _check_above_zero(self, "turn_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsConfig:
    """Tasks of many short calls: all begin with the same instructions, and each adds results."""

    tasks_s: float = 0.5
    calls: float = 12.0  # mean, of a task, one after the other
    fan_out: int = 1  # such rows of calls that a task makes side by side
    shared_tokens: int = 4_000  # instructions and tools
    task_tokens: int = 300  # mean
    result_tokens: int = 200  # mean, that a tool answers
    tool_s: float = 0.5  # mean, that it takes
    output_tokens: int = 60  # mean

    def __post_init__(self) -> None:
        _check_at_least("tasks_s", self.tasks_s, 0)
        _check_at_least("tool_s", self.tool_s, 0)
        _check_at_least("calls", self.calls, 1)
        _check_at_least("fan_out", self.fan_out, 1)
        _check_above_zero(self, "shared_tokens", "task_tokens", "result_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class StairsConfig:
    """Any rates: each holds from its time to the next one's."""

    rates: tuple[tuple[float, float], ...]  # (from which second on, requests a second)

    def __post_init__(self) -> None:
        times = [at for at, _ in self.rates]
        if not times or times[0] != 0 or times != sorted(set(times)):
            raise InvalidSetting("rates", self.rates, "must begin at 0, and go on in time")
        for _, rate in self.rates:
            _check_at_least("rates", rate, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadConfig:
    """Exactly one kind of arrivals."""

    seed: int = 1
    duration_s: float = 600.0  # a trace has its own
    lengths: LengthsConfig = LengthsConfig()
    shift: ShiftConfig | None = None
    trace: TraceConfig | None = None
    poisson: PoissonConfig | None = None
    bursty: BurstyConfig | None = None
    diurnal: DiurnalConfig | None = None
    step: StepConfig | None = None
    stairs: StairsConfig | None = None
    sessions: SessionsConfig | None = None
    agents: AgentsConfig | None = None

    def __post_init__(self) -> None:
        _check_above_zero(self, "duration_s")
        kinds = [each.name for each in fields(self)][4:]
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or None
            raise InvalidSetting("kind", told, f"must be exactly one of {', '.join(kinds)}")
        if self.shift is not None and given[0] in ("trace", "sessions", "agents"):
            raise InvalidSetting("shift", "...", f"does not go with {given[0]}: leave it out")
