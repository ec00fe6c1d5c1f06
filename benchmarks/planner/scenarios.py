"""What is asked of the fleet, and of what workers it consists."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stafette.platform.config_reading import Part
from stafette.platform.planner.config import PlannerConfig, PoolLimits, SloConfig
from stafette.platform.twin.config import TwinConfig, TwinPool
from stafette.platform.twin.workloads.config import (
    DiurnalConfig,
    LengthsConfig,
    PoissonConfig,
    ShiftConfig,
    StairsConfig,
    StepConfig,
    TraceConfig,
    WorkloadConfig,
)
from stafette.workers.mocker.speed_profile import Profile

STARTUP_S = 60.0
MOST_REPLICAS = 16  # of a pool
STEP_AT_S, SHIFT_AT_S = 300.0, 600.0
# The order of a 70-billion model on one GPU: few requests keep many workers busy.
LARGE = Profile(
    step_ms=40.0,
    prefill_ms_per_token=0.2,
    prefill_ms_per_pair=4e-6,
    decode_ms_per_seq=2.0,
    decode_ms_per_kv_token=1e-4,
    kv_bytes_per_token=327_680,
)
USUAL = LengthsConfig(prompt_tokens=3_000, output_tokens=100, prompt_spread=0.4, output_spread=0.4)
_INPUT_HEAVY = replace(USUAL, prompt_tokens=6_000, output_tokens=40, prompt_spread=0.3)
_OUTPUT_HEAVY = replace(USUAL, prompt_tokens=1_000, output_tokens=250)
_SLO = SloConfig(ttft_ms=5_000, ttft_percentile=99, itl_ms=80, itl_percentile=99)
_TRACE_SLO = SloConfig(ttft_ms=8_000, ttft_percentile=99, itl_ms=50, itl_percentile=99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    workload: WorkloadConfig
    mean_s: float  # requests a second
    peak_s: float
    begin_s: float  # at the beginning
    peak_lengths: LengthsConfig = USUAL
    slo: SloConfig = _SLO
    profile: Profile = LARGE

    def config(self, seed: int, replicas: Mapping[str, int], flips: bool) -> TwinConfig:
        """Return the twin's description. With flips the workers of both pools are of one class."""
        limits = PoolLimits(
            min_replicas=0,
            max_replicas=MOST_REPLICAS,
            startup_s=STARTUP_S,
            startup_limit_s=5 * STARTUP_S,
        )
        pools = {
            name: TwinPool(
                replicas=count,
                worker_class="one" if flips else name,
                speed=self.profile,
                limits=limits,
            )
            for name, count in replicas.items()
        }
        return TwinConfig(
            workload=replace(self.workload, seed=seed),
            pools=pools,
            slo=self.slo,
            engine=_given("engine", num_kv_blocks=800, block_size=256),
            dispatch=_given("dispatch", wait_s=5 * STARTUP_S),  # who comes to nobody is waited for
            planner=PlannerConfig(mode="on", flips=flips),
        )


def scenarios(trace: Path | None, quick: bool) -> list[Scenario]:
    """Return all of them; the trace's are left out where there is no file."""
    part = 0.35 if quick else 1.0
    found = [
        _diurnal(3_600 * part),
        _step(900 if not quick else 500),
        _shift(1_200 if not quick else 800),
        _zero(1_800 if not quick else 1_000),
        *(_constant(3_600 * part, rate) for rate in (1.5, 1.0, 2.3)),
    ]
    if trace is None:
        return found
    return [_trace(trace, 0.5, 1_500, quick), _trace(trace, 2.0, 4_000, quick), *found]


def _trace(file: Path, speedup: float, limit: int, quick: bool) -> Scenario:
    """The conversation trace: 3.4 requests a second at its own speed, 4.2 in its busiest minute."""
    told = TraceConfig(file=str(file), speedup=speedup, limit=limit // 5 if quick else limit)
    lengths = LengthsConfig(
        prompt_tokens=13_700, prompt_spread=1.1, output_tokens=350, max_prompt_tokens=120_000
    )
    return Scenario(
        name=f"conversations x {speedup:g}",
        workload=WorkloadConfig(trace=told),
        mean_s=3.4 * speedup,
        peak_s=4.2 * speedup,
        begin_s=3.4 * speedup,
        peak_lengths=lengths,
        slo=_TRACE_SLO,
        profile=Profile(),
    )


def _diurnal(duration_s: float) -> Scenario:
    told = DiurnalConfig(requests_s=1.2, period_s=duration_s / 2, bursts=2, burst_factor=2.0)
    return Scenario(
        name="diurnal with bursts",
        workload=WorkloadConfig(diurnal=told, duration_s=duration_s, lengths=USUAL),
        mean_s=1.2,
        peak_s=1.2 * 1.8 * 2.0,
        begin_s=0.3,
    )


def _step(duration_s: float) -> Scenario:
    told = StepConfig(requests_s=0.6, factor=5.0, at_s=STEP_AT_S)
    return Scenario(
        name="step x 5",
        workload=WorkloadConfig(step=told, duration_s=duration_s, lengths=USUAL),
        mean_s=0.6 * (1 + 4 * (1 - STEP_AT_S / duration_s)),
        peak_s=3.0,
        begin_s=0.6,
    )


def _shift(duration_s: float) -> Scenario:
    return Scenario(
        name="input-heavy to output-heavy",
        workload=WorkloadConfig(
            poisson=PoissonConfig(requests_s=1.5),
            duration_s=duration_s,
            lengths=_INPUT_HEAVY,
            shift=ShiftConfig(at_s=SHIFT_AT_S, lengths=_OUTPUT_HEAVY),
        ),
        mean_s=1.5,
        peak_s=1.5,
        begin_s=1.5,
        peak_lengths=_INPUT_HEAVY,
    )


def _zero(duration_s: float) -> Scenario:
    busy = duration_s / 3
    rates = ((0.0, 1.2), (busy, 0.0), (2 * busy, 1.2))
    return Scenario(
        name="to zero and back",
        workload=WorkloadConfig(
            stairs=StairsConfig(rates=rates), duration_s=duration_s, lengths=USUAL
        ),
        mean_s=0.8,
        peak_s=1.2,
        begin_s=1.2,
    )


def _constant(duration_s: float, rate: float) -> Scenario:
    """1.0 and 2.3 requests a second lie between two sizes."""
    return Scenario(
        name=f"constant, {rate:g}/s",
        workload=WorkloadConfig(
            poisson=PoissonConfig(requests_s=rate), duration_s=duration_s, lengths=USUAL
        ),
        mean_s=rate,
        peak_s=rate,
        begin_s=rate,
    )


def _given(part: str, **settings: object) -> Part[Any]:
    empty: Part[Any] = TwinConfig.__dataclass_fields__[part].default  # type: ignore[assignment]
    return replace(empty, given=settings)
